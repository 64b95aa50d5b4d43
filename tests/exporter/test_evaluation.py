"""The vectorised walk against a plain one, and the metrics on ranks that are known."""

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from exporter.evaluation import hit_rate, mrr, ndcg, prequential, ranks, report
from exporter.histories import Feeds, Horizon, Log, feeds_before, windows

N = 30


def random_log(rng: np.random.Generator, events: int = 600, users: int = 25) -> Log:
    """Events with repeats, unknown items and actions, and many within one second."""
    return Log(
        user_E=rng.integers(0, users, events),
        item_E=rng.integers(-1, N, events),
        action_E=rng.choice([0, 1, 1, 1, 2, 4], events).astype(np.uint8),
        excluding_E=rng.random(events) < 0.1,
        time_E=np.sort(rng.integers(0, 300, events)) * 1000,
    )


def scorer(feeds: Feeds) -> NDArray[np.float64]:
    """Scores with many ties, of every feed, whatever the padding."""
    weight = (feeds["history_items"] + 1) * (feeds["history_actions"] + 1) + feeds["history_times"] // 1000
    weight = np.where(feeds["history_items"] >= 0, weight, 0).sum(axis=1) + feeds["now"] // 1000
    scores_BN: NDArray[np.float64] = ((weight[:, None] * 7 + np.arange(N) * 13) % 11).astype(np.float64)
    for user, excluded in enumerate(feeds["excluded_items"]):
        scores_BN[user, excluded[excluded >= 0]] = -np.inf
    return scores_BN


def plain_feeds(log: Log, past: list[int], horizon: Horizon) -> dict[str, list[int]]:
    """The feeds of one user, event by event."""
    kept = past if horizon.kept is None else past[-horizon.kept :]
    known = [event for event in kept if log.item_E[event] >= 0 and log.action_E[event] > 0][-horizon.length :]
    seen = [log.item_E[event] for event in kept] if horizon.exclude_seen else []
    excluding = [log.item_E[event] for event in past if log.excluding_E[event]]
    if horizon.kept_excluding is not None:
        excluding = excluding[max(0, len(excluding) - horizon.kept_excluding) :]
    return {
        "history_items": [log.item_E[event] for event in known],
        "history_actions": [log.action_E[event] for event in known],
        "history_times": [log.time_E[event] for event in known],
        "now": [log.time_E[past[-1]] if past else 0],
        "excluded_items": sorted(item for item in {*seen, *excluding} if item >= 0),
    }


def plain_rank(scores_N: NDArray[np.float64], target: int) -> float:
    """Rank by sorting; the mean place of those with the target's score."""
    if target < 0 or scores_N[target] == -np.inf:
        return np.inf
    places = [place for place, score in enumerate(sorted(scores_N, reverse=True), 1) if score == scores_N[target]]
    return sum(places) / len(places)


HORIZONS = [
    Horizon(length=5, kept=8, kept_excluding=2),
    Horizon(length=50, kept=None, kept_excluding=None),
    Horizon(length=1, kept=1, kept_excluding=0, exclude_seen=False),
    Horizon(length=4, kept=None, kept_excluding=1, exclude_seen=False),
]


@pytest.mark.parametrize("horizon", HORIZONS)
def test_histories_and_ranks_are_those_of_a_plain_walk(horizon: Horizon, seed: int) -> None:
    log = random_log(np.random.default_rng(seed))
    events_R = np.arange(200, len(log))
    past: dict[int, list[int]] = defaultdict(list)
    expected = []
    for event in range(len(log)):
        if event >= 200:
            plain = plain_feeds(log, past[log.user_E[event]], horizon)
            feeds = feeds_before(log, np.array([event]), horizon)
            for name in ("history_items", "history_actions", "history_times"):
                row = feeds[name][0]
                assert row[len(row) - len(plain[name]) :].tolist() == plain[name]
                assert (row[: len(row) - len(plain[name])] == (-1 if name == "history_items" else 0)).all()
            assert feeds["now"].tolist() == plain["now"]
            excluded = feeds["excluded_items"][0]
            assert sorted(set(excluded[excluded >= 0].tolist())) == plain["excluded_items"]
            alone: dict[str, Any] = {name: np.array([row], np.int64) for name, row in plain.items()}
            expected.append(plain_rank(scorer(alone | {"now": alone["now"][0]})[0], log.item_E[event]))
        past[log.user_E[event]].append(event)
    np.testing.assert_array_equal(prequential(scorer, log, events_R, horizon), expected)


def test_the_feeds_have_the_dtypes_of_the_contract() -> None:
    feeds = feeds_before(random_log(np.random.default_rng(0)), np.arange(100, 110), Horizon())
    dtypes = {name: str(array.dtype) for name, array in feeds.items()}
    assert dtypes == {
        "history_items": "int32",
        "history_actions": "uint8",
        "history_times": "int64",
        "now": "int64",
        "excluded_items": "int32",
    }


def test_a_rank_counts_what_is_higher_and_half_of_the_ties() -> None:
    scores_BN = np.array([[3.0, 2, 2, 2, 1], [0, 0, 0, 0, 0], [-np.inf, 1, 2, 3, 4], [1, 2, 3, 4, 5]])
    assert ranks(scores_BN, np.array([2, 0, 0, -1])).tolist() == [3.0, 3.0, np.inf, np.inf]


def test_metrics_of_known_ranks() -> None:
    rank_R = np.array([1.0, 3.0, 10.5, np.inf])
    assert hit_rate(rank_R, 10) == 0.5
    assert ndcg(rank_R, 10) == pytest.approx((1 + 0.5) / 4)
    assert mrr(rank_R) == pytest.approx((1 + 1 / 3 + 1 / 10.5) / 4)
    assert report(np.array([1.0]), "x_") == {"x_hr@10": 1, "x_ndcg@10": 1, "x_mrr": 1}
    assert hit_rate(np.empty(0), 10) == ndcg(np.empty(0), 10) == mrr(np.empty(0)) == 0


@pytest.mark.parametrize("length", [1, 4, 50])
def test_windows_cover_every_event_but_the_newest_twice_at_most(length: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    log = random_log(rng)
    known = np.flatnonzero(log.known_E)
    for _ in range(5):
        events_WL = windows(log, length, rng)
        assert events_WL.shape[1] == length + 1
        targets = events_WL[:, 1:][events_WL[:, 1:] >= 0]
        counts = np.bincount(targets, minlength=len(log))
        assert (counts[known] >= 1).all()
        assert counts.max() <= 2
        assert counts[~log.known_E].sum() == 0
        for row in events_WL:
            events = row[row >= 0]
            assert (row[len(row) - len(events) :] == events).all(), "right-aligned"
            assert (np.diff(events) > 0).all(), "in time order"
            assert len(set(log.user_E[events])) == 1
            # Nothing of the user is left out between two events of a window, nor before one that is not full.
            user = known[log.user_E[known] == log.user_E[events[0]]]
            assert set(events) == set(user[(user >= events[0]) & (user <= events[-1])])
            assert len(events) == length + 1 or events[0] == user[0]


def test_windows_of_no_known_event() -> None:
    log = random_log(np.random.default_rng(0))[:0]
    assert windows(log, 5, np.random.default_rng(0)).shape == (0, 6)
