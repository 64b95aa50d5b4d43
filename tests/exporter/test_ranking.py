"""Figures of lists against slow versions of their definitions, in plain Python."""

import math
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from exporter.evaluate.calibration import calibration
from exporter.evaluate.exposure import co_occurrence, coverage, diversity, exposure, gini, lorenz, novelty
from exporter.evaluate.ranking import NAMES, accuracy

LISTS, K, ITEMS = 200, 8, 40


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def random_lists(rng: np.random.Generator) -> NDArray[np.int32]:
    """Lists without repeats, some of them short, one empty."""
    rows_RK = np.array([rng.permutation(ITEMS)[:K] for _ in range(LISTS)], np.int32)
    for row, length in enumerate([0, 1, 2, *rng.integers(1, K + 1, LISTS - 3)]):
        rows_RK[row, length:] = -1
    return rows_RK


def plain(listed: list[int], wanted: set[int], k: int) -> dict[str, float]:
    """One list's figures, place by place."""
    hits = [item in wanted for item in listed[:k]] + [False] * max(0, k - len(listed))
    places = [place for place, hit in enumerate(hits, 1) if hit]
    precision, recall = len(places) / k, len(places) / len(wanted)
    ideal = sum(1 / math.log2(place + 1) for place in range(1, min(k, len(wanted)) + 1))
    return {
        "hr": float(bool(places)),
        "ndcg": sum(1 / math.log2(place + 1) for place in places) / ideal,
        "mrr": 1 / places[0] if places else 0.0,
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if places else 0.0,
        "map": sum(sum(hits[:place]) / place for place in places) / min(k, len(wanted)),
    }


@pytest.mark.parametrize("k", [1, 3, K])
@pytest.mark.parametrize("most", [1, 12])
def test_accuracy_is_that_of_the_definitions(rng: np.random.Generator, k: int, most: int) -> None:
    rows_RK = random_lists(rng)
    wanted = [set(rng.permutation(ITEMS)[: rng.integers(1, most + 1)].tolist()) for _ in rows_RK]
    gains_RK = np.array(
        [[row >= 0 and row in want for row in rows] for rows, want in zip(rows_RK, wanted, strict=True)]
    )
    found = accuracy(gains_RK, np.array([len(want) for want in wanted]), k)
    assert tuple(found) == NAMES
    for number, want in enumerate(wanted):
        expected = plain([row for row in rows_RK[number].tolist() if row >= 0], want, k)
        assert {name: values_R[number] for name, values_R in found.items()} == pytest.approx(expected)


def test_with_one_target_recall_is_the_hit_rate_and_map_is_mrr(rng: np.random.Generator) -> None:
    gains_RK = np.zeros((LISTS, K), np.bool_)
    gains_RK[np.arange(100), rng.integers(0, K, 100)] = True
    found = accuracy(gains_RK, np.ones(LISTS, np.int64), K)
    np.testing.assert_array_equal(found["recall"], found["hr"])
    np.testing.assert_allclose(found["map"], found["mrr"])


def test_exposure_and_its_shares(rng: np.random.Generator) -> None:
    rows_RK = random_lists(rng)[:10]
    shown_N = exposure(rows_RK, ITEMS)
    listed = [row for row in rows_RK.ravel().tolist() if row >= 0]
    assert shown_N.tolist() == [listed.count(item) for item in range(ITEMS)]
    assert coverage(shown_N) == len(set(listed)) / ITEMS
    pairs = sum(abs(int(a) - int(b)) for a in shown_N for b in shown_N)
    assert gini(shown_N) == pytest.approx(pairs / (2 * ITEMS * len(listed)))
    assert gini(np.full(7, 3)) == 0
    assert gini(np.zeros(7, np.int64)) == 0
    shares = lorenz(shown_N)
    assert (shares[0], shares[-1], len(shares)) == (0, 1, 101)
    assert (np.diff(shares) >= 0).all()


def test_novelty_is_the_mean_self_information(rng: np.random.Generator) -> None:
    rows_RK, count_N = random_lists(rng), rng.integers(0, 50, ITEMS)
    for rows, found in zip(rows_RK, novelty(rows_RK, count_N), strict=True):
        bits = [-math.log2((count_N[row] + 1) / (count_N.sum() + ITEMS)) for row in rows if row >= 0]
        assert found == pytest.approx(sum(bits) / len(bits) if bits else 0)


def test_diversity_is_the_mean_distance_of_pairs(rng: np.random.Generator) -> None:
    rows_RK, vectors_ND = random_lists(rng), rng.normal(size=(ITEMS, 5))
    vectors_ND[3] = 0
    units_ND = vectors_ND / np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), 1e-12)
    for rows, found in zip(rows_RK, diversity(rows_RK, vectors_ND), strict=True):
        distances = [1 - units_ND[a] @ units_ND[b] for a, b in combinations(rows[rows >= 0], 2)]
        assert found == pytest.approx(np.mean(distances) if distances else 0)


def test_the_sketch_of_co_occurrence_is_near_the_cosine_of_the_sets_of_users() -> None:
    rng = np.random.default_rng(1)
    user_E, row_E = rng.integers(0, 3000, 60_000), (ITEMS * rng.random(60_000) ** 2).astype(np.int64)
    matrix_NU = np.zeros((ITEMS, 3000))
    matrix_NU[row_E, user_E] = 1
    exact_ND, sketch_ND = (
        each / np.linalg.norm(each, axis=1, keepdims=True) for each in (matrix_NU, co_occurrence(user_E, row_E, ITEMS))
    )
    assert np.abs(exact_ND @ exact_ND.T - sketch_ND @ sketch_ND.T).max() < 5 / math.sqrt(512)


def test_scores_whose_softmax_is_the_truth_are_calibrated(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores_RK = -np.sort(-rng.normal(size=(20_000, K)), axis=1).astype(np.float32)
    share_RK = np.exp(scores_RK) / np.exp(scores_RK).sum(axis=1, keepdims=True)
    hit_R = (share_RK.cumsum(axis=1) < rng.random((20_000, 1))).sum(axis=1).clip(max=K - 1)
    gains_RK = np.arange(K) == hit_R[:, None]
    gains_RK[:5000] = False  # the item was not on the list
    found = calibration(scores_RK, gains_RK, np.ones(20_000, np.int64))
    assert found is not None
    assert found.error < 0.03
    assert sum(group.lists for group in found.groups) == 15_000
    far = calibration(scores_RK * 5, gains_RK, np.ones(20_000, np.int64))
    assert far is not None
    assert far.error > 0.2
    assert calibration(np.full((3, K), np.nan, np.float32), gains_RK[-3:], np.ones(3, np.int64)) is None
