"""Which lists are made, and what each should have held: the three ways to split a log by time.

Nothing before the cut is tested, in any of them: a bundle that was trained on the events before it has seen nothing of
what it is asked. Axes: E events, R lists, K list length, P targets (items that a list should have held).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from exporter.evaluate.served import Judged, Listed, Replay, Row
from exporter.histories import Ints
from stream_worker.errors import DataError
from stream_worker.messages import NEGATIVE_ACTIONS


@dataclass(frozen=True, eq=False)
class Stream:
    """The events of a file in time order, by column.

    Attributes:
        events: user, item, action, time.
        cut: number of the first event that may be tested.
        user_E, item_E: int64, dense numbers of the users and of the items of the file.
        row_E: int64, the bundle's item rows, -1 where it does not know the item.
        place_E: int64, the place of each event in its session, from 0; None where sessions were not asked for.
    """

    events: pl.DataFrame
    cut: int
    user_E: Ints
    item_E: Ints
    row_E: Ints
    place_E: Ints | None = None

    @classmethod
    def of(cls, events: pl.DataFrame, cut: int, ids: list[str], place_E: Ints | None = None) -> "Stream":
        """Encode the clean events of data.py for a bundle with these items.

        Raises:
            DataError: no event is after the cut.
        """
        if cut >= events.height:
            raise DataError(f"events: none of {events.height:,} comes after the cut. Lower --train-share.")
        rows = {item: row for row, item in enumerate(ids)}
        return cls(
            events,
            cut,
            events["user"].rank("dense").cast(pl.Int64).to_numpy() - 1,
            events["item"].rank("dense").cast(pl.Int64).to_numpy() - 1,
            events["item"].replace_strict(rows, default=-1, return_dtype=pl.Int64).to_numpy(),
            place_E,
        )

    def rows(self, part: slice | Ints) -> list[Row]:
        """These events as the worker is fed them."""
        return self.events[part].select("user", "item", "action", "time").rows()

    @cached_property
    def wanted_E(self) -> NDArray[np.bool_]:
        """bool [E]: whether a list should have held the item, which is not so where it was hidden or disliked."""
        return ~self.events["action"].is_in(list(NEGATIVE_ACTIONS)).to_numpy()

    @cached_property
    def time_E(self) -> Ints:
        """int64 [E], epoch ms."""
        return self.events["time"].to_numpy()

    @cached_property
    def first_E(self) -> Ints:
        """int64 [E]: number of the first event of each event's item."""
        _, first, place_E = np.unique(self.item_E, return_index=True, return_inverse=True)
        return first[place_E]

    @cached_property
    def last_of_user(self) -> Ints:
        """int64: numbers of the last event of each user, in time order."""
        _, place = np.unique(self.user_E[::-1], return_index=True)
        return np.sort(len(self.user_E) - 1 - place)


@dataclass(frozen=True, eq=False)
class Lists:
    """Lists as they were served, and what they should have held.

    Attributes:
        rows_RK: int32, item rows, best first, -1 where a list ends.
        scores_RK: float32, NaN where a list ends, and of lists for everybody.
        own_R: bool, whether it was the user's own list.
        user_R: int64, the user's number.
        made_R: int64, the list was made just before the event of this number.
        list_P: int64, the list that each target belongs to, ascending.
        event_P: int64, the event that made it a target.
        row_P: int64, the target's item row, -1 where the bundle does not know it: a miss.
        judged: what the worker's own judge counted meanwhile; empty where events were not fed one by one.
    """

    rows_RK: NDArray[np.int32]
    scores_RK: NDArray[np.float32]
    own_R: NDArray[np.bool_]
    user_R: Ints
    made_R: Ints
    list_P: Ints
    event_P: Ints
    row_P: Ints
    judged: Mapping[str, Judged]

    def __len__(self) -> int:
        """R."""
        return len(self.rows_RK)

    @cached_property
    def rank_P(self) -> Ints:
        """int64 [P]: the place of each target on its list, best = 1; 0 if it is not there."""
        match_PK = (self.rows_RK[self.list_P] == self.row_P[:, None]) & (self.row_P >= 0)[:, None]
        return np.where(match_PK.any(axis=1), match_PK.argmax(axis=1) + 1, 0)

    @cached_property
    def gains_RK(self) -> NDArray[np.bool_]:
        """bool [R, K]: whether the item at each place is a target."""
        gains_RK = np.zeros(self.rows_RK.shape, np.bool_)
        hit_P = self.rank_P > 0
        gains_RK[self.list_P[hit_P], self.rank_P[hit_P] - 1] = True
        return gains_RK

    @cached_property
    def targets_R(self) -> Ints:
        """int64 [R]: targets of each list, at least 1."""
        return np.bincount(self.list_P, minlength=len(self))


def prequential(replay: Replay, stream: Stream, console: Console) -> Lists:
    """Walk the events after the cut in time order: rank before each, update after, one event a step of the worker.

    Dawid, "Statistical theory: the prequential approach", JRSS A 1984. The events before the cut are folded first, all
    at once, so that users who have a history have a list.
    """
    replay.feed(stream.rows(slice(0, stream.cut)))
    before = replay.judged()
    listed = []
    walked = zip(stream.rows(slice(stream.cut, None)), stream.wanted_E[stream.cut :], strict=True)
    rest = stream.events.height - stream.cut
    for event, wanted in track(walked, "walk", rest, console=console, transient=True, disable=not console.is_terminal):
        if wanted:
            listed.append(replay.list_of(event[0]))
        replay.feed([event])
    judged = {name: counted - before[name] for name, counted in replay.judged().items()}
    return _one_target_each(listed, stream, stream.cut + np.flatnonzero(stream.wanted_E[stream.cut :]), judged)


def leave_one_out(replay: Replay, stream: Stream, console: Console) -> Lists:
    """Each user's last event, if it comes after the cut, against the list from all events of the user before it.

    Not of a user who did not want the last item: what came before it would be no longer the last.
    """
    last = stream.last_of_user
    tested = last[(last >= stream.cut) & stream.wanted_E[last]]
    replay.feed(stream.rows(np.setdiff1d(np.arange(stream.events.height), tested)))
    listed = [replay.list_of(user) for user in stream.events[tested]["user"]]
    return _one_target_each(listed, stream, tested, {})


def time_split(replay: Replay, stream: Stream, console: Console) -> Lists:
    """Each user's list at the cut, against all items that the user took after it: lists that are never refreshed."""
    replay.feed(stream.rows(slice(0, stream.cut)))
    tested = stream.cut + np.flatnonzero(stream.wanted_E[stream.cut :])
    # The first event with an item makes it a target; one user's targets stand together.
    pairs, first = np.unique(np.stack([stream.user_E[tested], stream.item_E[tested]]), axis=1, return_index=True)
    event_P = tested[first]
    users_R, first_of_user, list_P = np.unique(pairs[0], return_index=True, return_inverse=True)
    names = stream.events[event_P[first_of_user]]["user"]
    made_R = np.full(len(users_R), stream.cut)
    listed = [replay.list_of(name) for name in names]
    return _lists(listed, users_R, made_R, list_P, event_P, stream.row_E[event_P], {})


PROTOCOLS: dict[str, Callable[[Replay, Stream, Console], Lists]] = {
    "prequential": prequential,
    "leave-one-out": leave_one_out,
    "time-split": time_split,
}


def _one_target_each(
    listed: list[tuple[Listed, bool]], stream: Stream, event_R: Ints, judged: Mapping[str, Judged]
) -> Lists:
    places_R = np.arange(len(event_R))
    return _lists(listed, stream.user_E[event_R], event_R, places_R, event_R, stream.row_E[event_R], judged)


def _lists(
    listed: list[tuple[Listed, bool]],
    user_R: Ints,
    made_R: Ints,
    list_P: Ints,
    event_P: Ints,
    row_P: Ints,
    judged: Mapping[str, Judged],
) -> Lists:
    if not listed:
        raise DataError("events: after the cut nobody took an item; all that is there hides or dislikes one.")
    rows_RK = np.stack([one.rows_K for one, _ in listed])
    scores_RK = np.stack([one.scores_K for one, _ in listed])
    own_R = np.array([own for _, own in listed])
    return Lists(rows_RK, scores_RK, own_R, user_R, made_R, list_P, event_P, row_P, judged)
