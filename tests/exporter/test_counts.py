"""The vectorised counts against plain ones."""

from collections import defaultdict

import numpy as np
import pytest
import torch

from exporter.histories import Log
from exporter.models import Plan
from exporter.models.ages import DAY_MS, STEPS
from exporter.models.base import Tensors
from exporter.models.counts import Pairs, both_ways, pairs_within, top_rows
from exporter.models.itemknn import ItemKNNPart
from exporter.models.neighbours import SMOOTHING, SOURCE_DAMPING, NeighbourPart
from exporter.models.personal import PersonalPart
from exporter.models.popularity import log_counts
from exporter.models.rules import RulesPart
from tests.logs import START_MS, log_of

ITEMS = 12


def a_log(seed: int) -> Log:
    """Repeats, unknown items, and users between one another's events."""
    rng = np.random.default_rng(seed)
    return log_of(rng.integers(0, 9, 300), rng.integers(-1, ITEMS, 300))


def plain_pairs(log: Log, window: int, power: float) -> dict[tuple[int, int], float]:
    """Event by event."""
    past: dict[int, list[int]] = defaultdict(list)
    sums: dict[tuple[int, int], float] = defaultdict(float)
    for user, item in zip(log.user_E.tolist(), log.item_E.tolist(), strict=True):
        if item < 0:
            continue
        for distance, earlier in enumerate(past[user][::-1][:window], start=1):
            sums[earlier, item] += distance**-power
        past[user].append(item)
    return sums


def as_dict(pairs: Pairs) -> dict[tuple[int, int], float]:
    return {(int(a), int(b)): float(w) for a, b, w in zip(*vars(pairs).values(), strict=True)}


@pytest.mark.parametrize(("window", "power"), [(1, 1.0), (10, 1.0), (13, 0.5)])
def test_pairs_are_those_of_a_plain_walk(window: int, power: float, seed: int) -> None:
    log = a_log(seed)
    expected = plain_pairs(log, window, power)
    pairs = pairs_within(log, window, lambda distance: distance**-power, ITEMS)
    assert as_dict(pairs) == pytest.approx(expected)
    both = expected.keys() | {(b, a) for a, b in expected}
    mirrored = {(a, b): expected.get((a, b), 0) + expected.get((b, a), 0) for a, b in both}
    assert as_dict(both_ways(pairs, ITEMS)) == pytest.approx(mirrored)


def test_rows_hold_the_strongest_first_and_padding_after() -> None:
    pairs = Pairs(np.array([0, 0, 0, 2]), np.array([1, 2, 3, 0]), np.array([1.0, 3.0, 2.0, 5.0]))
    rows_NM, weights_NM = top_rows(pairs, pairs.weight_P, 4, 2)
    assert rows_NM.tolist() == [[2, 3], [-1, -1], [0, -1], [-1, -1]]
    assert weights_NM.tolist() == [[3, 2], [0, 0], [5, 0], [0, 0]]
    assert (rows_NM.dtype, weights_NM.dtype) == (torch.int32, torch.float32)


def test_no_events_and_no_pairs_are_no_rows() -> None:
    log = log_of([], [])
    rows_NM, weights_NM = top_rows(pairs_within(log, 3, float, 4), np.empty(0), 4, 2)
    assert (rows_NM == -1).all()
    assert (weights_NM == 0).all()


def feeds_of(history: list[int], ages_days: list[float]) -> Tensors:
    """One user."""
    now = START_MS + 1000 * DAY_MS
    return {
        "history_items": torch.tensor([history], dtype=torch.int32),
        "history_times": torch.tensor([[now - int(age * DAY_MS) for age in ages_days]]),
        "now": torch.tensor([now]),
    }


@pytest.mark.parametrize("kind", [RulesPart, ItemKNNPart])
@pytest.mark.parametrize("repeats", [False, True])
def test_a_score_is_the_decayed_sum_of_the_rows(kind: type[NeighbourPart], repeats: bool, seed: int) -> None:
    log = a_log(seed)
    part = kind(Plan(ITEMS, log, repeats=repeats))
    part.set(damping=0.3, decay=0.7)
    counts = np.bincount(log.item_E[log.item_E >= 0], minlength=ITEMS)
    pairs = plain_pairs(log, 10, 1.0) if kind is RulesPart else plain_pairs(log, 30, 0.5)
    history = [3, 1, 3, 7]
    expected = np.zeros(ITEMS)
    for age, item in enumerate(history[::-1]):
        for other in range(ITEMS):
            weight = pairs.get((item, other), 0) + (pairs.get((other, item), 0) if kind is ItemKNNPart else 0)
            if repeats or item != other:
                scale = (counts[item] + SMOOTHING) ** SOURCE_DAMPING * (counts[other] + SMOOTHING) ** 0.3
                expected[other] += 0.7**age * weight / scale
    items = {"item_bias": torch.zeros(ITEMS), **part.tensors()}
    feeds = feeds_of([-1, *history], [0.0] * 5)
    np.testing.assert_allclose(part.scores(feeds, items)[0], expected / expected.sum(), rtol=1e-5)
    top_BK = torch.tensor([[4, 0, 3]])
    shares_BKL = part.shares(feeds, items, top_BK)
    assert shares_BKL.shape == (1, 3, 5)
    np.testing.assert_allclose(shares_BKL.sum(-1)[0], (expected / expected.sum())[[4, 0, 3]], rtol=1e-5)


def test_personal_frequency_is_the_sum_of_what_the_ages_are_worth() -> None:
    part = PersonalPart(Plan(ITEMS, log_of([], []), repeats=True))
    part.kernel_A1 = torch.arange(1.0, STEPS + 1)[:, None]  # same second 1, … 14 days 7, 28 days 8
    items = {"item_bias": torch.zeros(ITEMS)}
    scores_BN = part.scores(feeds_of([-1, 5, 2, 5], [0, 28, 27.9, 0]), items)
    assert scores_BN[0].nonzero().flatten().tolist() == [2, 5]
    assert (scores_BN[0, 5] / scores_BN[0, 2]).item() == pytest.approx((8 + 1) / 7)
    assert part.scores(feeds_of([-1], [0]), items).sum() == 0


def test_what_an_age_is_worth_is_learned_from_what_is_repeated() -> None:
    """Three of four times the item of a week ago comes again, else that of yesterday."""
    part = PersonalPart(Plan(ITEMS, log_of([], []), repeats=True))
    feeds = [feeds_of([4, 6], [7, 1.5])] * 4
    part.tune([(one, torch.tensor([item])) for one, item in zip(feeds, (4, 4, 4, 6), strict=True)])
    week, yesterday = (part.kernel_A1[step, 0].item() for step in (5, 3))
    assert (week, yesterday) == pytest.approx((1, 1 / 3), rel=0.05)


def test_popularity_counts_the_newest_more_and_all_together_the_same() -> None:
    log = log_of(range(5), [0, 0, 0, 1, 1])
    assert log_counts(log, 3, None).exp().sub(1).tolist() == pytest.approx([3, 2, 0])
    recent_N = log_counts(log, 3, 0.25).exp() - 1  # a half-life of one event
    assert recent_N.sum().item() == pytest.approx(5)
    assert (recent_N[1] / recent_N[0]).item() == pytest.approx((1 + 1 / 2) / (1 / 4 + 1 / 8 + 1 / 16))
