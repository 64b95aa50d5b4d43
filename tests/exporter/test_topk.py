"""The K best of all items: the same whichever way they are sought, ties and all.

Axes: B users, N items, D item dimension, X excluded items, K list length.
"""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from exporter import topk
from exporter.histories import Feeds
from exporter.low_precision import items_to_float16, items_to_int8
from exporter.models import attention, ncf
from stream_worker.low_precision import low_precision_rows
from stream_worker.manifest import padded_rows
from tests.exporter.conftest import K, new_model
from tests.exporter.test_contract import feeds_of
from tests.exporter.test_low_precision import session_of

DIM, BLOCK = 8, 64
USERS, ITEMS, EXCLUDED = (1, topk.FEW, 9), (BLOCK, 3 * BLOCK, 3 * BLOCK + 5), (0, 1, 40)


@pytest.fixture(params=["plain", "blocks", "int8", "float16"])
def way(request: pytest.FixtureRequest) -> str:
    """Each of them."""
    return str(request.param)


@pytest.fixture
def find(way: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Feeds], Feeds]:
    """The operator alone, in this way."""
    monkeypatch.setattr(topk, "BLOCK", BLOCK)
    monkeypatch.setattr(topk, "CHUNK", 4)
    monkeypatch.setattr(topk, "DENSE_ITEMS", 0 if way == "blocks" else 10**6)
    model = topk.alone(DIM, K)
    topk.define(model, 100)
    if way == "int8":
        assert items_to_int8(model, BLOCK)
    if way == "float16":
        assert items_to_float16(model)
    onnx.checker.check_model(model)
    session = session_of(model, tmp_path)

    def run(feeds: Feeds) -> Feeds:
        if way == "float16":
            feeds = feeds | in_whole_chunks(feeds["item_vectors"], feeds["item_bias"])
        names = {value.name for value in session.get_inputs()}
        feeds = feeds | low_precision_rows(feeds["item_vectors"], names)
        return dict(zip(("scores", "items"), session.run(["scores", "items"], feeds), strict=True))

    return run


def in_whole_chunks(vectors_ND: NDArray[np.float32], bias_N: NDArray[np.float32]) -> Feeds:
    """Items as a worker holds them."""
    added = padded_rows(len(bias_N), K, topk.CHUNK) - len(bias_N)
    return {
        "item_vectors": np.pad(vectors_ND, ((0, added), (0, 0))),
        "item_bias": np.pad(bias_N, (0, added), constant_values=-np.inf),
    }


def random_feeds(rng: np.random.Generator, users: int, items: int, excluded: int) -> Feeds:
    """Whole numbers, so that sums are exact and many scores are equal."""
    bias_N = rng.integers(-2, 3, items).astype(np.float32)
    bias_N[rng.integers(0, items, 5)] = -np.inf
    return {
        "user": rng.integers(-2, 3, (users, DIM)).astype(np.float32),
        "item_vectors": rng.integers(-2, 3, (items, DIM)).astype(np.float32),
        "item_bias": bias_N,
        "excluded_items": rng.integers(-3, items + 3, (users, excluded)).astype(np.int32),
    }


def wanted(feeds: Feeds) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """By sorting all of them; of equal scores the lower row first."""
    scores_BN = feeds["user"] @ feeds["item_vectors"].T + feeds["item_bias"]
    for scores_N, excluded_X in zip(scores_BN, feeds["excluded_items"], strict=True):
        scores_N[excluded_X[(excluded_X >= 0) & (excluded_X < len(scores_N))]] = -np.inf
    rows_BK = np.argsort(-scores_BN, axis=1, kind="stable")[:, :K]
    return np.take_along_axis(scores_BN, rows_BK, 1), rows_BK


def test_the_best_items_of_all_and_of_equal_ones_the_lower_row(
    find: Callable[[Feeds], Feeds], way: str, seed: int
) -> None:
    rng, tolerance = np.random.default_rng(seed), 1e-5 if way == "int8" else 0
    for users, items, excluded in itertools.product(USERS, ITEMS, EXCLUDED):
        feeds = random_feeds(rng, users, items, excluded)
        if way == "int8":  # what is equal is not so after rounding: of many, 2 K chunks may miss the lower row
            feeds |= {name: rng.standard_normal(feeds[name].shape, np.float32) for name in ("user", "item_vectors")}
        scores_BK, rows_BK = wanted(feeds)
        found = find(feeds)
        case = f"{users} users, {items} items, {excluded} excluded"
        np.testing.assert_allclose(found["scores"], scores_BK, tolerance, tolerance, err_msg=case)
        np.testing.assert_array_equal(found["items"], rows_BK, case)


def test_all_good_items_may_be_excluded_or_hidden(find: Callable[[Feeds], Feeds], seed: int) -> None:
    feeds = random_feeds(np.random.default_rng(seed), 9, BLOCK, 0)
    feeds["item_bias"][:] = -np.inf
    feeds["item_bias"][[7, 8, 9, 40]] = 0
    feeds["excluded_items"] = np.array([[8, 9, -1]] * 9, np.int32)
    found = find(feeds)
    assert np.isfinite(found["scores"]).tolist() == [[True] * 2 + [False] * (K - 2)] * 9
    assert set(found["items"][:, :2].ravel().tolist()) == {7, 40}


def test_no_vector_and_no_user_is_nan(find: Callable[[Feeds], Feeds]) -> None:
    feeds = random_feeds(np.random.default_rng(0), 9, BLOCK, 4)
    feeds["user"][:] = feeds["item_vectors"][:] = 0
    scores_BK, rows_BK = wanted(feeds)
    found = find(feeds)
    np.testing.assert_array_equal(found["scores"], scores_BK)
    np.testing.assert_array_equal(found["items"], rows_BK)


@pytest.mark.parametrize("name", ["sasrec", "ncf"])
def test_what_comes_on_top_of_the_product_needs_no_pass_over_all_items(
    name: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = new_model(name, seed, repeats=True)
    monkeypatch.setattr(attention, "DENSE_ITEMS", 0)
    monkeypatch.setattr(ncf, "DENSE_ITEMS", 0)
    monkeypatch.setattr(ncf, "CANDIDATES", 20)
    sparse = new_model(name, seed, repeats=True)
    feeds = {name: torch.from_numpy(array) for name, array in feeds_of(seed).items()}
    items = {name: tensor.detach() for name, tensor in dense.item_tensors().items()}
    with torch.inference_mode():
        scores_BK, top_BK = dense.top(feeds, items, K)
        found_BK, rows_BK = sparse.top(feeds, items, K)
    torch.testing.assert_close(found_BK, scores_BK)
    assert torch.equal(rows_BK, top_BK)


def test_products_cannot_saturate_where_the_cpu_adds_them_in_16_bits() -> None:
    assert 2 * 255 * topk.USER_STEPS < 2**15
