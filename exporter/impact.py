"""What a change of a bundle's graph does to its lists and its cost: two bundles, side by side on real histories.

Axes: B users, K list length, R ranked events, U users.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.evaluate.bootstrap import intervals
from exporter.evaluate.ranking import accuracy
from exporter.evaluation import batches
from exporter.histories import Feeds, Horizon, Ints, Log, feeds_before
from stream_worker.bundle import Bundle
from stream_worker.vectors import nothing

NDCG_PLACES = 10
OVERLAP_PLACES = 20
BATCHES = (1, 32)
TIMED_BATCHES = 8  # different ones of each size
REPEATS = 20

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Impact:
    """Before and after.

    Attributes:
        events: R.
        ndcg: NDCG@10 before and after; an item that is not on the list is a miss.
        interval: bootstrap 95 % of NDCG@10 after less before.
        places: K, or 20 if the list is longer.
        overlap: mean share of a list's first items, that many, that are on both lists.
        cpu_us: batch size -> microseconds of CPU a user, before and after.
    """

    events: int
    ndcg: tuple[float, float]
    interval: tuple[float, float]
    places: int
    overlap: float
    cpu_us: dict[int, tuple[float, float]]

    @property
    def loss(self) -> float:
        """The share of NDCG@10 that is lost; negative if it rose."""
        before, after = self.ndcg
        return (before - after) / before if before else 0.0


def measure(before: Bundle, after: Bundle, log: Log, events_R: Ints, horizon: Horizon, seed: int) -> Impact:
    """Both bundles' lists just before each of these events, and their time.

    Args:
        log: all events up to the last of `events_R`, their items as rows of the bundles.
        events_R: int64 [R], numbers of events in the log.
        seed: of the bootstrap.
    """
    before_RK, after_RK = (lists(bundle, log, events_R, horizon) for bundle in (before, after))
    gain_R, new_gain_R = (gains(rows_RK, log.item_E[events_R]) for rows_RK in (before_RK, after_RK))
    difference = intervals((new_gain_R - gain_R)[:, None], log.user_E[events_R], seed)
    places = min(OVERLAP_PLACES, before.manifest.K)
    return Impact(
        events=len(events_R),
        ndcg=(float(gain_R.mean()), float(new_gain_R.mean())),
        interval=(float(difference.low_M[0]), float(difference.high_M[0])),
        places=places,
        overlap=overlap(before_RK[:, :places], after_RK[:, :places]),
        cpu_us={size: _cpu_us(before, after, _some_feeds(before, log, events_R, horizon, size)) for size in BATCHES},
    )


def lists(bundle: Bundle, log: Log, events_R: Ints, horizon: Horizon) -> Ints:
    """The rows recommended just before each event, int64 [R, K], best first, -1 where there is no more."""
    rows_RK = np.empty((len(events_R), bundle.manifest.K), np.int64)
    for batch in batches(log, events_R, BATCHES[-1]):
        given = bundle.infer(_feeds(bundle, log, events_R[batch], horizon))
        rows_RK[batch] = np.where(np.isfinite(given["scores"]), given["items"], -1)
    return rows_RK


def gains(rows_RK: Ints, target_R: Ints) -> Floats:
    """1 / log2(rank + 1) where the item is among the first 10, else 0: its mean is NDCG@10."""
    hit_RK = (rows_RK == target_R[:, None]) & (target_R >= 0)[:, None]
    return accuracy(hit_RK, np.ones(len(hit_RK), np.int64), min(NDCG_PLACES, hit_RK.shape[1]))["ndcg"]


def overlap(one_RK: Ints, other_RK: Ints) -> float:
    """The mean share of the items of one list that are on the other."""
    item_RK = one_RK >= 0
    both_RK = item_RK & (one_RK[:, :, None] == other_RK[:, None, :]).any(axis=2)
    return float(both_RK.sum() / max(1, item_RK.sum()))


def _cpu_us(before: Bundle, after: Bundle, feeds: list[Feeds]) -> tuple[float, float]:
    """Microseconds of CPU a user: of each batch the least of some repeats, both bundles in turns, on one thread."""
    best = np.full((2, len(feeds)), np.inf)
    for repeat in range(REPEATS):
        for number, batch in enumerate(feeds):
            for side in (0, 1) if repeat % 2 else (1, 0):  # the second finds the caches warm
                bundle = (before, after)[side]
                best[side, number] = min(best[side, number], _seconds(bundle.infer, batch))
    one, other = best.sum(axis=1) / sum(len(batch["now"]) for batch in feeds) * 1e6
    return float(one), float(other)


def _seconds(infer: Callable[[Feeds], Any], feeds: Feeds) -> float:
    start = time.thread_time()  # CPU, not wall: other processes share the machine
    infer(feeds)
    return time.thread_time() - start


def _some_feeds(bundle: Bundle, log: Log, events_R: Ints, horizon: Horizon, size: int) -> list[Feeds]:
    """A few batches of that many users, from short histories to long ones."""
    whole = [batch for batch in batches(log, events_R, size) if len(batch) == size]
    few = whole[:: max(1, len(whole) // TIMED_BATCHES)] or [np.arange(len(events_R))]
    return [_feeds(bundle, log, events_R[batch], horizon) for batch in few[:TIMED_BATCHES]]


def _feeds(bundle: Bundle, log: Log, events_B: Ints, horizon: Horizon) -> Feeds:
    """What a worker would feed of these users; a user's vector, if there is one, is rebuilt from the history."""
    feeds = feeds_before(log, events_B, horizon)
    new = {name.replace("history_", "new_"): array for name, array in feeds.items() if name.startswith("history_")}
    return {**feeds, **new, **nothing(bundle.manifest.kept, len(events_B))}
