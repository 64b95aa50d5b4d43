"""The graph through device buffers, as on a GPU, but on the CPU: the same code, and the same lists."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from benchmarks.graphs import feeds_of
from stream_worker.bundle import Bundle
from stream_worker.errors import BundleError
from stream_worker.inference import Inference
from stream_worker.manifest import MODEL, find_bundle


@pytest.mark.parametrize("name", ["sasrec", "popularity", "gru4rec", "streaming-transformer"])
def test_device_buffers_give_what_arrays_give(models: Mapping[str, Path], name: str, seed: int) -> None:
    bundle, rng = Bundle(models[name]), np.random.default_rng(seed)
    bound = Inference(bundle.path / MODEL, bundle.items.tensors, bound=True)
    for batch in (4, 1, 4, 2, 1):  # shapes come back, with other users
        feeds = feeds_of(bundle, batch, rng)
        wanted, found = bundle.infer(feeds), bound.run(feeds)
        assert wanted.keys() == found.keys()
        for output, array in wanted.items():
            assert array.dtype == found[output].dtype
            np.testing.assert_array_equal(array, found[output])


def test_outputs_are_the_callers(models: Mapping[str, Path], seed: int) -> None:
    bundle, rng = Bundle(models["sasrec"]), np.random.default_rng(seed)
    bound = Inference(bundle.path / MODEL, bundle.items.tensors, bound=True)
    first = bound.run(feeds_of(bundle, 2, rng))
    scores = first["scores"].copy()
    bound.run(feeds_of(bundle, 2, rng))
    assert (first["scores"] == scores).all()


def test_resident_tensors_of_the_cpu_may_change_between_runs(models: Mapping[str, Path], seed: int) -> None:
    bundle = Bundle(models["sasrec"])
    feeds = feeds_of(bundle, 2, np.random.default_rng(seed))
    top = int(bundle.infer(feeds)["items"][0, 0])
    bundle.items.tensors["item_bias"][top] = -np.inf
    assert top not in bundle.infer(feeds)["items"]


def test_how_many_users_share_an_inference_is_measured(models: Mapping[str, Path]) -> None:
    bundle = Bundle(models["sasrec"])
    us_of = bundle.measure_batches()
    assert list(us_of) == bundle.manifest.buckets.batch[: len(us_of)]
    assert bundle.largest_batch in us_of
    assert bundle.warm_up() > 0


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_cuda_is_refused_where_there_is_none(models: Mapping[str, Path], cuda_graphs: bool) -> None:
    with pytest.raises(BundleError, match="device cuda"):
        Inference(find_bundle(models["sasrec"]) / MODEL, {}, "cuda", cuda_graphs=cuda_graphs)
