"""Users' histories out of a log of events: the windows to train on, and each event's history for evaluation.

The log is arrays in time order. Before an event stands what the worker would hold of its user: the newest H events, of
which the model sees the newest L known ones, and the newest items of excluding actions.

Axes: E events, B users, L history length, H events kept of a user, X excluded items, W windows.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

FIRST_NEGATIVE = 254  # codes from here on say that a user does not want an item
Ints = NDArray[np.int64]
Feeds = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Log:
    """Events in time order, one entry an event.

    Attributes:
        user_E: int64, dense numbers of users.
        item_E: int64, rows of the item table, -1 for items that are not in it.
        action_E: uint8, codes of the manifest, 0 for actions that have none (the model never sees these).
        excluding_E: bool, whether the action excludes the item for good.
        time_E: int64, epoch ms in whole seconds, as the worker's state holds it.
        shows_negatives: whether the model sees what a user disliked or hid; else it sees no such event.
    """

    user_E: Ints
    item_E: Ints
    action_E: NDArray[np.uint8]
    excluding_E: NDArray[np.bool_]
    time_E: Ints
    shows_negatives: bool = False

    @classmethod
    def of(
        cls,
        events: pl.DataFrame,
        items: list[str],
        codes: dict[str, int],
        excluding: list[str],
        shows_negatives: bool = False,
    ) -> Self:
        """Encode the clean events of data.py."""
        rows = {item: row for row, item in enumerate(items)}
        return cls(
            user_E=events["user"].rank("dense").cast(pl.Int64).to_numpy() - 1,
            item_E=events["item"].replace_strict(rows, default=-1, return_dtype=pl.Int64).to_numpy(),
            action_E=events["action"].replace_strict(codes, default=0, return_dtype=pl.UInt8).to_numpy(),
            excluding_E=events["action"].is_in(excluding).to_numpy(),
            time_E=events["time"].to_numpy() // 1000 * 1000,
            shows_negatives=shows_negatives,
        )

    @classmethod
    def empty(cls) -> Self:
        """No events."""
        none_E = np.empty(0, np.int64)
        return cls(none_E, none_E, np.empty(0, np.uint8), np.empty(0, np.bool_), none_E)

    def __len__(self) -> int:
        """E."""
        return len(self.user_E)

    def __getitem__(self, part: slice | NDArray[np.bool_]) -> Self:
        """A part of the log, in its order."""
        return replace(
            self,
            user_E=self.user_E[part],
            item_E=self.item_E[part],
            action_E=self.action_E[part],
            excluding_E=self.excluding_E[part],
            time_E=self.time_E[part],
        )

    @cached_property
    def known_E(self) -> NDArray[np.bool_]:
        """bool [E]: the model can see the event."""
        return (self.item_E >= 0) & (self.action_E > 0) & (self.shows_negatives | ~self.negative_E)

    @property
    def negative_E(self) -> NDArray[np.bool_]:
        """bool [E]: the user disliked or hid the item."""
        return self.action_E >= FIRST_NEGATIVE

    @cached_property
    def wanted_E(self) -> NDArray[np.bool_]:
        """bool [E]: the model can see the event, and the user wanted the item: what counts and is predicted."""
        return self.known_E & ~self.negative_E

    @cached_property
    def by_user(self) -> Ints:
        """int64 [E]: the events' numbers, user by user, each in time order."""
        return np.argsort(self.user_E, kind="stable")

    @cached_property
    def place_E(self) -> Ints:
        """int64 [E]: where in `by_user` an event stands."""
        place_E = np.empty(len(self), np.int64)
        place_E[self.by_user] = np.arange(len(self))
        return place_E

    @cached_property
    def start_E(self) -> Ints:
        """int64 [E]: where in `by_user` the user of the event at each *place* starts."""
        user_E = self.user_E[self.by_user]
        return np.searchsorted(user_E, user_E, side="left")


@dataclass(frozen=True)
class Horizon:
    """How much of a user the worker holds and the model sees.

    Attributes:
        length: L, newest known events that the model sees.
        kept: H, newest events kept; None keeps all.
        kept_excluding: newest items of excluding actions kept apart; None keeps all.
        exclude_seen: whether the items of the kept events are excluded.
    """

    length: int = 50
    kept: int | None = 64
    kept_excluding: int | None = 32
    exclude_seen: bool = True


def feeds_before(log: Log, events_B: Ints, horizon: Horizon) -> Feeds:
    """The graph's feeds for each event's user just before that event; L is the longest history of the batch.

    Args:
        events_B: int64 [B], numbers of events in the log.
    """
    place_B = log.place_E[events_B]
    start_B = log.start_E[place_B]
    events_BH = _last(log.by_user, start_B, place_B, horizon.kept)
    known_BH = _take(log.known_E, events_BH, False)
    length = int(np.clip(known_BH.sum(axis=1).max(initial=0), 1, horizon.length))
    # Stable: the unknown go left, the known stay in order on the right, of which the newest `length` are taken.
    order_BL = np.argsort(known_BH, axis=1, kind="stable")[:, -length:]
    history_BL = np.where(np.take_along_axis(known_BH, order_BL, 1), np.take_along_axis(events_BH, order_BL, 1), -1)
    seen_BH = _take(log.item_E, events_BH, -1) if horizon.exclude_seen else events_BH[:, :0]
    excluding = np.flatnonzero(log.excluding_E[log.by_user])
    events_BX = _last(
        log.by_user[excluding],
        np.searchsorted(excluding, start_B),
        np.searchsorted(excluding, place_B),
        horizon.kept_excluding,
    )
    return {
        "history_items": _take(log.item_E, history_BL, -1).astype(np.int32),
        "history_actions": _take(log.action_E, history_BL, 0),
        "history_times": _take(log.time_E, history_BL, 0),
        "now": _take(log.time_E, events_BH[:, -1], 0),
        "excluded_items": np.hstack([seen_BH, _take(log.item_E, events_BX, -1)]).astype(np.int32),
    }


def windows(log: Log, length: int, rng: np.random.Generator) -> Ints:
    """Cut each user's known events into windows of L inputs and their targets, at places that change with every epoch.

    A window ends at a user's last event, then at a random one of the L before it, and every L events before that: every
    event is predicted about once an epoch, at times from a short history, as new users have.

    Returns:
        int64 [W, L + 1], numbers of events in the log, right-aligned, -1 = none, one row a window, users in order.
    """
    places = np.flatnonzero(log.known_E[log.by_user])
    events = log.by_user[places]
    if not len(events):
        return np.empty((0, length + 1), np.int64)
    user = log.user_E[events]
    starts = np.flatnonzero(np.diff(user, prepend=-1))
    ends = np.append(starts[1:], len(events))
    sizes = ends - starts
    offset = np.where(sizes > length, rng.integers(0, length, len(sizes)), 0)
    more = np.where(sizes > length, -(-(sizes - offset) // length) - (offset == 0), 0)  # windows besides the last
    owner = np.repeat(np.arange(len(sizes)), more)
    nth = np.arange(len(owner)) - np.repeat(np.cumsum(more) - more, more) + (offset == 0)[owner]
    end_W = np.concatenate([ends, ends[owner] - offset[owner] - nth * length])
    owner_W = np.concatenate([np.arange(len(sizes)), owner])
    return _last(events, starts[owner_W], end_W, length + 1, least=length + 1)


def _last(order: Ints, start_B: Ints, end_B: Ints, most: int | None, least: int = 1) -> Ints:
    """The last `most` entries of order[start:end], right-aligned, -1 = none; as wide as needed, at least `least`."""
    width = max(least, int((end_B - start_B).max(initial=0)))
    width = width if most is None else min(width, most)
    at_BH = end_B[:, None] + np.arange(-width, 0)
    return np.where(at_BH >= start_B[:, None], np.append(order, -1)[np.maximum(at_BH, 0)], -1)


def _take(values_E: NDArray[Any], events: Ints, fill: int) -> NDArray[Any]:
    """values[events], `fill` where there is no event (-1)."""
    return np.where(events >= 0, values_E[events], values_E.dtype.type(fill))
