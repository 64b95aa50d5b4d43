"""What the blend adds to its parts: weights from validation, and personal frequency where items come again."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from exporter import topk
from exporter.evaluation import histories_before, ndcg, prequential, scorer_of
from exporter.export import write_bundle
from exporter.histories import Horizon
from exporter.models import Hybrid, Plan, attention, create, hybrid, parts
from exporter.models.personal import PersonalPart
from exporter.models.tuning import sample
from exporter.training import seed_everything
from stream_worker.bundle import Bundle
from tests.exporter.conftest import LENGTH, NOW, K, N, catalogue, new_model, serving
from tests.exporter.test_contract import feeds_of
from tests.logs import random_log


def untrained(seed: int, repeats: bool = False) -> Hybrid:
    seed_everything(seed)
    model = create("hybrid", Plan(N, random_log(seed, N)[:600], length=LENGTH, dim=16, repeats=repeats))
    assert isinstance(model, Hybrid)
    return model.eval()


def test_tuning_finds_the_parts_that_know_and_the_next_model_adopts_it(seed: int) -> None:
    log = random_log(seed, N)
    events_R, horizon = np.arange(600, len(log)), Horizon(LENGTH)
    model = untrained(seed)
    before = ndcg(prequential(scorer_of(model), log, events_R, horizon), 10)
    model.tune(list(histories_before(log, events_R, horizon)))
    assert (model.weights >= 0).all()
    assert ndcg(prequential(scorer_of(model), log, events_R, horizon), 10) >= before - 0.02
    other = untrained(seed + 1)
    other.adopt(model)
    assert torch.equal(other.weights, model.weights)
    assert [vars(part)["damping"] for part in other.parts] == [vars(part)["damping"] for part in model.parts]


def test_nothing_to_validate_on_keeps_the_weights() -> None:
    model = untrained(0)
    weights = model.weights.clone()
    model.tune([])
    assert torch.equal(model.weights, weights)


def test_of_many_items_the_likeliest_give_about_the_weights_that_all_give(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = random_log(seed, N)
    batches = sample(histories_before(log, np.arange(600, len(log)), Horizon(LENGTH)))
    whole, part, pieces = untrained(seed), untrained(seed), untrained(seed)
    whole._fit(batches)  # noqa: SLF001
    monkeypatch.setattr(hybrid, "FIT_ITEMS", N - 5)
    part._fit(batches)  # noqa: SLF001
    assert not torch.equal(part.weights, whole.weights)
    torch.testing.assert_close(part.weights, whole.weights, rtol=0.25, atol=0.25)
    monkeypatch.setattr(hybrid, "FIT_ITEMS", N)
    monkeypatch.setattr(hybrid, "PIECE", 3 * N)
    pieces._fit(batches)  # noqa: SLF001
    torch.testing.assert_close(pieces.weights, whole.weights, rtol=1e-3, atol=1e-3)


def test_personal_frequency_is_part_of_it_where_items_may_be_listed_again(tmp_path: Path) -> None:
    assert not any(isinstance(part, PersonalPart) for part in untrained(0).parts)
    model = untrained(0, repeats=True)
    assert any(isinstance(part, PersonalPart) for part in model.parts)
    bundle = Bundle(write_bundle(tmp_path, model, catalogue(), serving(), NOW))  # held to torch on the way
    assert "now" in {entry.name for entry in bundle.manifest.inputs}


def test_a_large_catalogue_gets_the_same_lists_without_passes_over_it(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = new_model("hybrid", seed, repeats=True)  # so that all of its parts are there

    for module in (attention, hybrid, parts, topk):
        monkeypatch.setattr(module, "DENSE_ITEMS", 0)
    monkeypatch.setattr(topk, "BLOCK", 16)
    sparse = new_model("hybrid", seed, repeats=True)
    feeds = {name: torch.from_numpy(array) for name, array in feeds_of(seed).items()}
    items = {name: tensor.detach() for name, tensor in dense.item_tensors().items()}
    with torch.inference_mode():
        scores_BK, top_BK = dense.top(feeds, items, K)
        found_BK, rows_BK = sparse.top(feeds, items, K)
        torch.testing.assert_close(found_BK, scores_BK)
        assert torch.equal(rows_BK, top_BK)
        assert torch.equal(sparse.because(feeds, items, top_BK), dense.because(feeds, items, top_BK))
    bundle = Bundle(write_bundle(tmp_path, sparse, catalogue(), serving(), NOW))  # held to `scores` on the way
    operators = {node.op_type for node in onnx.load(bundle.path / "model.onnx").graph.node}
    assert operators >= {"Top", "TopK", "CumSum"}
    assert bundle.manifest.row_multiple == 16
    assert len(bundle.items.tensors["item_bias"]) == 48
