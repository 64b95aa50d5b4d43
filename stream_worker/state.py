"""The users of one partition, in NumPy slabs: a row a user.

Only the main thread touches it. Everything here is a function of the log alone: no model, no clock.
Axes: C capacity in rows, H history length, E excluded length, K list length, B users of a batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_worker.errors import DataError
from stream_worker.events import Events
from stream_worker.excluded import NONE, Excluded
from stream_worker.fold import Fold, append, insert
from stream_worker.messages import NEGATIVE_ACTIONS
from stream_worker.slabs import Eldest, grow
from stream_worker.vectors import NONE as NO_VECTOR
from stream_worker.vectors import VectorCache

FIRST_ROWS = 256  # of the slabs
MAX_ACTIONS = 65_535
NO_OFFSET = -1
ALL_UNSEEN = 2**30  # the vector is to be rebuilt, whatever the length of the history
FEW_EVENTS = 64  # so many cost less one by one
EVICTED_AT_ONCE = 10  # for a new user, where a bound was lowered: a checkpoint has to hold all of a poll
NAME_BYTES = 250  # of a user outside the slabs: the name, and its places in a dictionary and a list
NOBODY = 2**62  # offset and timestamp of a row without a user: neither old nor owed anything


class Actions:
    """Interned action names: code <-> name, shared by the partitions of a worker."""

    def __init__(self, excluding: frozenset[str] = frozenset()) -> None:
        self.names: list[str] = []
        self.excluding: list[bool] = []  # by code: whether its items are kept apart as excluded
        self.negative: list[bool] = []  # by code: whether it says that the item is not wanted
        self._codes: dict[str, int] = {}
        self._excluding_names = excluding

    def code(self, name: str) -> int:
        """The code of a name, a new one if needed.

        Raises:
            DataError: more than 65,535 names, so the field cannot be an action.
        """
        code = self._codes.get(name)
        if code is None:
            if len(self.names) == MAX_ACTIONS:
                raise DataError(
                    f"events: more than {MAX_ACTIONS} different actions. Does event_action_field name an id?"
                )
            code = self._codes[name] = len(self.names)
            self.names.append(name)
            self.excluding.append(name in self._excluding_names)
            self.negative.append(name in NEGATIVE_ACTIONS)
        return code


@dataclass
class Histories:
    """Users as the state holds them: copies, a row a user, left-aligned, oldest first."""

    items_BH: NDArray[np.uint64]
    times_BH: NDArray[np.uint32]
    actions_BH: NDArray[np.uint16]
    length_B: NDArray[np.int32]
    excluded_items_BE: NDArray[np.uint64]
    excluded_actions_BE: NDArray[np.uint16]
    excluded_length_B: NDArray[np.int32]

    def __len__(self) -> int:
        """B."""
        return len(self.length_B)

    @classmethod
    def concatenate(cls, parts: Sequence["Histories"]) -> "Histories":
        """The users of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(cls)))


@dataclass
class Copy:
    """Users as they are at one moment, a row a user, and those who are no longer held."""

    users: list[str]
    histories: Histories
    events_B: NDArray[np.int64]
    applied_offset_B: NDArray[np.int64]
    listed_offset_B: NDArray[np.int64]
    timestamp_B: NDArray[np.int64]
    gone: list[str]


class Partition:
    """All users of one input partition.

    Args:
        number: the partition's number.
        history_length, excluded_length: H and E.
        list_length: K, items of the last list that are remembered for judging it.
        max_users: most users; for one more, the user without an event for the most records goes.
        ttl_ms: users whose last event is older than this, against `newest`, go; None for never.
        vectors: what the model keeps of users, of all partitions; None where it keeps nothing.
    """

    def __init__(
        self,
        number: int,
        history_length: int,
        excluded_length: int,
        list_length: int,
        max_users: int = 2**31,
        ttl_ms: int | None = None,
        vectors: VectorCache | None = None,
    ) -> None:
        self.number = number
        self.max_users = max_users
        self.ttl_ms = ttl_ms
        self.newest = 0  # the highest Kafka timestamp of a record, epoch ms
        self.leaving: set[str] = set()  # expired, their lists not erased yet: the changelog keeps them till then
        self.evicted: list[str] = []  # to make room, since the caller last emptied it
        self._eldest = Eldest()  # by applied_offset
        self.changed: set[str] = set()  # users whose exact state is not what the last `take_changed` copied
        self.users: list[str | None] = []  # row -> user
        self._rows: dict[str, int] = {}
        self._free: list[int] = []
        self._capacity = 0
        h, k = history_length, list_length
        self.items = np.zeros((0, h), np.uint64)
        self.times = np.zeros((0, h), np.uint32)
        self.actions = np.zeros((0, h), np.uint16)
        self.length = np.zeros(0, np.int32)
        self.excluded = Excluded(excluded_length)
        self.excluded_row = np.zeros(0, np.int32)
        self.events = np.zeros(0, np.int64)  # folded since the user was first seen
        self.applied_offset = np.zeros(0, np.int64)  # last event folded
        self.listed_offset = np.zeros(0, np.int64)  # last event that an acknowledged list covers
        self.timestamp = np.zeros(0, np.int64)  # Kafka timestamp of the last event, epoch ms
        # Caches, never durable. Item rows of the last list handed to the producer, -1 where there is none; the key of
        # the model's vector, and how many of the user's newest events that has not seen.
        self.listed_items = np.zeros((0, k), np.int32)
        self._vectors = vectors
        self.vector_key = np.zeros(0, np.int64)
        self.unseen = np.zeros(0, np.int32)

    def __len__(self) -> int:
        """Users held."""
        return len(self._rows)

    @property
    def _slabs(self) -> tuple[NDArray[Any], ...]:
        return (
            self.items, self.times, self.actions, self.length,
            self.excluded_row, self.events, self.applied_offset, self.listed_offset, self.timestamp,
            self.listed_items, self.vector_key, self.unseen,
        )  # fmt: skip

    @property
    def nbytes(self) -> int:
        """Bytes of the slabs."""
        return sum(slab.nbytes for slab in self._slabs) + self.excluded.nbytes

    def row(self, user: str) -> int | None:
        """The user's row, or None."""
        return self._rows.get(user)

    def rows_of(self, users: Sequence[str]) -> NDArray[np.intp]:
        """The rows of users who are held."""
        return np.array([self._rows[user] for user in users], np.intp)

    def fold(self, events: Events, excluding: Sequence[bool]) -> tuple[NDArray[np.intp], NDArray[np.uint8]]:
        """Fold events into their users, who are made if new.

        Args:
            events: in the order of the log.
            excluding: by action code, whether it excludes the item.

        Returns:
            The rows that the users had [E], and what became of the events [E], values of `Fold`.
        """
        if len(events) < FEW_EVENTS or not self._has_room(events.users):
            return self._fold_singly(events, excluding, range(len(events)))
        rows = self._rows
        rows_E = np.array([rows[user] if user in rows else self._add(user) for user in events.users], np.intp)
        columns = events.columns()
        fresh = np.flatnonzero(columns.offsets_E > self.applied_offset[rows_E])
        outcomes_E = np.full(len(rows_E), Fold.REPLAYED, np.uint8)
        items_E, times_E, actions_E, offsets_E, timestamps_E = (column[fresh] for column in columns)
        if len(fresh):
            appended = append(
                self.items, self.times, self.actions, self.length, rows_E[fresh], items_E, times_E, actions_E
            )
            others = fresh[~appended]
            rows_A = rows_E[fresh[appended]]
            self.applied_offset[rows_A] = offsets_E[appended]  # of several for a row the last counts
            self.timestamp[rows_A] = timestamps_E[appended]
            np.add.at(self.events, rows_A, 1)
            np.add.at(self.unseen, rows_A, 1)
            excludes = np.array(excluding, np.bool_)[actions_E] & appended
            for row, item, action in zip(
                rows_E[fresh[excludes]].tolist(), items_E[excludes].tolist(), actions_E[excludes].tolist(), strict=True
            ):
                self.excluded_row[row] = self.excluded.note(int(self.excluded_row[row]), item, action)
            outcomes_E[fresh[appended]] = Fold.APPENDED
            self.changed.update([events.users[e] for e in fresh[appended].tolist()])
            outcomes_E[others] = self._fold_singly(events, excluding, others.tolist())[1]
        return rows_E, outcomes_E

    def _fold_singly(
        self, events: Events, excluding: Sequence[bool], which: Sequence[int]
    ) -> tuple[NDArray[np.intp], NDArray[np.uint8]]:
        """See `fold`: those of these numbers, one by one."""
        rows_E, outcomes_E = np.empty(len(which), np.intp), np.empty(len(which), np.uint8)
        for place, e in enumerate(which):
            action = events.actions[e]
            rows_E[place], outcomes_E[place] = self._fold_one(
                events.users[e],
                events.items[e],
                events.times[e],
                action,
                excluding[action],
                events.offsets[e],
                events.timestamps[e],
            )
        return rows_E, outcomes_E

    def _fold_one(
        self, user: str, item: int, time: int, action: int, excluding: bool, offset: int, timestamp: int
    ) -> tuple[int, Fold]:
        row = self._rows.get(user)
        if row is None:
            if len(self._rows) >= self.max_users:
                self._make_room()
            row = self._add(user)
        elif offset <= self.applied_offset[row]:
            return row, Fold.REPLAYED
        length, outcome = insert(
            self.items[row], self.times[row], self.actions[row], int(self.length[row]), item, time, action
        )
        if outcome is Fold.DUPLICATE:
            return row, outcome
        self.length[row] = length
        if outcome is Fold.APPENDED:
            self.unseen[row] += 1
        elif outcome is Fold.LATE:
            self.unseen[row] = ALL_UNSEEN
        if excluding:
            self.excluded_row[row] = self.excluded.note(int(self.excluded_row[row]), item, action)
        self.events[row] += 1
        self.applied_offset[row] = offset
        self.timestamp[row] = timestamp
        self.changed.add(user)
        return row, outcome

    def _has_room(self, users: Sequence[str]) -> bool:
        """Whether nobody must go for them."""
        most = len(self._rows) + len(users)
        return most <= self.max_users or len(self._rows) + len(set(users).difference(self._rows)) <= self.max_users

    def forget(self, user: str) -> None:
        """Erase a user, here and on the changelog."""
        self.changed.add(user)
        self._remove(user)

    def expire(self, timestamp: int) -> list[str]:
        """A record of this Kafka timestamp comes, and is due: erase the users without an event for `ttl_ms`.

        The changelog keeps them until they are `erased`, so that a restart does not forget to erase their lists.
        """
        self.newest = timestamp
        return self.expire_now()

    def expiry_due(self, timestamp: int) -> bool:
        """Whether users may expire with a record of this Kafka timestamp.

        That is so sixteen times a `ttl_ms`, at timestamps that depend on the log alone.
        """
        if self.ttl_ms is None or timestamp <= self.newest:
            return False
        step = self.ttl_ms // 16
        return timestamp // step != self.newest // step

    def expire_now(self) -> list[str]:
        """See `expire`: those that are due at `newest`."""
        if self.ttl_ms is None:
            return []
        step = self.ttl_ms // 16
        (rows,) = np.nonzero(self.timestamp[: len(self.users)] < self.newest // step * step - self.ttl_ms)
        expired = [user for row in rows.tolist() if (user := self.users[row]) is not None]
        for user in expired:
            self._remove(user)
        self.leaving.update(expired)
        return expired

    def erased(self, user: str) -> None:
        """The list of a user who was erased is gone, so the state may go, too."""
        if user in self.leaving:
            self.leaving.remove(user)
            self.changed.add(user)

    def listed(self, users: Sequence[str], offsets: Sequence[int]) -> None:
        """Lists that cover these users' events up to these offsets are acknowledged; a user may have several."""
        rows, changed = self._rows, self.changed
        held = [(user, rows[user], offset) for user, offset in zip(users, offsets, strict=True) if user in rows]
        rows_L = np.array([row for _, row, _ in held], np.intp)
        offsets_L = np.array([offset for _, _, offset in held], np.int64)
        newer = offsets_L > self.listed_offset[rows_L]
        np.maximum.at(self.listed_offset, rows_L, offsets_L)
        changed.update(user for (user, _, _), is_newer in zip(held, newer.tolist(), strict=True) if is_newer)

    def owed(self) -> list[tuple[str, int]]:
        """Users, with their rows, whose last event no acknowledged list covers; the longest waiting first."""
        count = len(self.users)
        (rows,) = np.nonzero(self.listed_offset[:count] < self.applied_offset[:count])
        rows = rows[np.argsort(self.applied_offset[rows])]
        return [(user, row) for row in rows.tolist() if (user := self.users[row]) is not None]

    def take_changed(self) -> Copy:
        """Copy the users that changed since the last call."""
        changed = self.changed - self.leaving
        self.changed &= self.leaving
        gone = changed.difference(self._rows)  # walks the set, not the dictionary
        users = list(changed - gone)
        rows_B = self.rows_of(users)
        return Copy(
            users,
            self.gather(rows_B),
            self.events[rows_B],
            self.applied_offset[rows_B],
            self.listed_offset[rows_B],
            self.timestamp[rows_B],
            list(gone),
        )

    def take_over(self, copy: Copy) -> None:
        """Users as the changelog has them, H and E as here: no changes to write there."""
        for user in copy.gone:
            self._remove(user)
        rows = (self._rows.get(user) for user in copy.users)
        rows_B = [self._claim(user) if row is None else row for user, row in zip(copy.users, rows, strict=True)]
        h = copy.histories
        self.items[rows_B], self.times[rows_B], self.actions[rows_B] = h.items_BH, h.times_BH, h.actions_BH
        self.length[rows_B] = h.length_B
        self.excluded_row[rows_B] = self.excluded.replace(
            self.excluded_row[rows_B], h.excluded_items_BE, h.excluded_actions_BE, h.excluded_length_B
        )
        self.events[rows_B] = copy.events_B
        self.applied_offset[rows_B], self.listed_offset[rows_B] = copy.applied_offset_B, copy.listed_offset_B
        self.timestamp[rows_B] = copy.timestamp_B
        self.listed_items[rows_B] = -1
        self.unseen[rows_B] = ALL_UNSEEN

    def gather(self, rows_B: Sequence[int] | NDArray[Any]) -> Histories:
        """Copies of these users' exact state."""
        rows_B = np.asarray(rows_B, np.intp)
        excluded_B = self.excluded_row[rows_B]
        return Histories(
            self.items[rows_B],
            self.times[rows_B],
            self.actions[rows_B],
            self.length[rows_B],
            self.excluded.items[excluded_B],
            self.excluded.actions[excluded_B],
            self.excluded.length[excluded_B],
        )

    def _make_room(self) -> None:
        """Evict users with the smallest `applied_offset`, so that one more fits; of too many some."""
        for _ in range(min(len(self._rows) - self.max_users + 1, EVICTED_AT_ONCE)):
            row = self._eldest.pop(self.applied_offset[: len(self.users)], NOBODY)
            assert row is not None, "there are users"
            user = self.users[row]
            assert user is not None, "a row without a user has the stamp of nobody"
            self.changed.add(user)
            self.evicted.append(user)
            self._remove(user)

    def _remove(self, user: str) -> None:
        row = self._rows.pop(user, None)
        if row is not None:
            self.users[row] = None
            self.applied_offset[row] = self.listed_offset[row] = self.timestamp[row] = NOBODY
            self.excluded.release(int(self.excluded_row[row]))
            self.excluded_row[row] = NONE
            if self._vectors is not None:
                self._vectors.release(int(self.vector_key[row]))
            self.vector_key[row] = NO_VECTOR
            self._free.append(row)

    def _add(self, user: str) -> int:
        row = self._claim(user)
        self.length[row] = self.events[row] = self.unseen[row] = 0
        self.applied_offset[row] = -NOBODY  # below every event: those that are seeded have offsets below 0
        self.listed_offset[row] = NO_OFFSET
        self.listed_items[row] = -1
        return row

    def _claim(self, user: str) -> int:
        """A row for a new user, with what was there before."""
        if self._free:
            row = self._free.pop()
            self.users[row] = user
        else:
            row = len(self.users)
            if row == self._capacity:
                self._grow()
            self.users.append(user)
        self._rows[user] = row
        self.leaving.discard(user)
        return row

    def _grow(self) -> None:
        self._capacity = grow(self._slabs, self._capacity, FIRST_ROWS)


def bytes_of_user(history_length: int, excluded_length: int, list_length: int) -> int:
    """About what a user without excluded items takes in memory."""
    slabs = Partition(0, history_length, excluded_length, list_length)._slabs  # noqa: SLF001
    return NAME_BYTES + sum(slab.dtype.itemsize * math.prod(slab.shape[1:]) for slab in slabs)
