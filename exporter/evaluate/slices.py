"""Whose lists, and for which items, are good: targets by the user's activity, by the item's age, and over time.

A target's figures are those of a list with one target: it is there at k or not. Axes: P targets.
"""

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from exporter.evaluate.protocols import Lists, Stream
from exporter.histories import Ints

DAY_MS = 86_400_000
PERIODS = 20


class Slice(msgspec.Struct, frozen=True):
    """Some of the targets: how many, and the share found (HR) and NDCG within the first `k`; 0 where there are none."""

    name: str
    targets: int
    hr: float
    ndcg: float


def by_activity(lists: Lists, stream: Stream, k: int) -> list[Slice]:
    """By the number of events that the user had when the list was made."""
    order = np.argsort(stream.user_E, kind="stable")
    # Events of one user stand together, by number: a list's user had as many as come before where it belongs.
    key = stream.user_E[order] * len(order) + order
    start = np.searchsorted(key, lists.user_R * len(order))
    events_R = np.searchsorted(key, lists.user_R * len(order) + lists.made_R) - start
    edges = [("0", 0), ("1", 1), ("2-5", 2), ("6+", 6)]
    return list(_binned(lists.rank_P, events_R[lists.list_P], edges, k))


def by_age(lists: Lists, stream: Stream, k: int) -> list[Slice]:
    """By the time from the item's first event in the file to the making of the list."""
    made_P, first_P = lists.made_R[lists.list_P], stream.first_E[lists.event_P]
    age_P = np.where(first_P < made_P, stream.time_E[made_P] - stream.time_E[first_P], -1)
    edges = [("new", -1), ("< 1 day", 0), ("1-7 days", DAY_MS), ("7-30 days", 7 * DAY_MS), ("30+ days", 30 * DAY_MS)]
    return list(_binned(lists.rank_P, age_P, edges, k))


def by_warmth(lists: Lists, stream: Stream, k: int) -> list[Slice]:
    """Cold items have no event before the cut: what a model trained there can know of them is their content."""
    warm_P = (stream.first_E[lists.event_P] < stream.cut).astype(np.int64)
    return list(_binned(lists.rank_P, warm_P, [("cold items", 0), ("warm items", 1)], k))


def by_session(lists: Lists, stream: Stream, k: int) -> list[Slice]:
    """By the events before the target in its session; nothing if sessions were not asked for."""
    if stream.place_E is None:
        return []
    edges = [("first", 0), ("2nd", 1), ("3rd-5th", 2), ("6th+", 5)]
    return list(_binned(lists.rank_P, stream.place_E[lists.event_P], edges, k))


def by_list(lists: Lists, k: int) -> list[Slice]:
    """By whether the user had a list of their own, or was judged by the one for everybody."""
    own_P = lists.own_R[lists.list_P].astype(np.int64)
    return list(_binned(lists.rank_P, own_P, [("default list", 0), ("own list", 1)], k))


def over_time(lists: Lists, stream: Stream, k: int) -> list[Slice]:
    """Periods of equal length from the cut to the end, each named by the ISO time of its beginning."""
    start, end = int(stream.time_E[stream.cut]), int(stream.time_E[-1])
    starts = np.linspace(start, end, PERIODS, endpoint=False).astype(np.int64)
    names = np.datetime_as_string(starts.astype("datetime64[ms]"), unit="s").tolist()
    time_P = stream.time_E[lists.event_P]
    return list(_binned(lists.rank_P, time_P, list(zip(names, starts.tolist(), strict=True)), k))


def figures(rank_P: Ints, k: int) -> tuple[float, float]:
    """HR and NDCG at k of targets with these ranks, 0 = not on the list."""
    if not len(rank_P):
        return 0.0, 0.0
    hit_P = (rank_P > 0) & (rank_P <= k)
    return float(hit_P.mean()), float(np.where(hit_P, 1 / np.log2(np.maximum(rank_P, 1) + 1), 0).mean())


def _binned(rank_P: Ints, value_P: NDArray[np.int64], edges: Sequence[tuple[str, int]], k: int) -> Iterator[Slice]:
    """Slices from each edge to the next."""
    bin_P = np.searchsorted([edge for _, edge in edges], value_P, side="right") - 1
    for number, (name, _) in enumerate(edges):
        of_bin = rank_P[bin_P == number]
        yield Slice(name, len(of_bin), *figures(of_bin, k))
