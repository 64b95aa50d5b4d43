"""A log in memory, for tests and for trying things: partitions in lists, consumer groups, scripted failures.

`MemoryLog` is the broker, `MemoryTransport` one worker's connection to it. No threads, no clock of its own.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stream_worker.errors import DataError
from stream_worker.transports.base import Assigned, Commit, Delivery, Polled, Topic


class Crash(BaseException):
    """A scripted kill -9: nothing may run between it and the restart. Not an Exception, so nothing catches it."""


@dataclass(frozen=True)
class MemoryRecord:
    """A record of the log in memory."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass
class MemoryLog:
    """Topics, and one consumer group that shares the events' partitions among its transports.

    Args:
        partitions: of the events topic.
        now: epoch seconds, the timestamp of what is appended without one.
    """

    partitions: int = 1
    now: Callable[[], float] = lambda: 1_767_225_600.0
    events: list[list[MemoryRecord]] = field(init=False)
    topics: dict[Topic, list[MemoryRecord]] = field(init=False)
    committed: dict[int, int] = field(default_factory=dict)
    members: list["MemoryTransport"] = field(default_factory=list)
    start: dict[int, int] = field(default_factory=dict)  # first offset retained, 0 unless set

    def __post_init__(self) -> None:
        """Make the topics, empty."""
        self.events = [[] for _ in range(self.partitions)]
        self.topics = {topic: [] for topic in Topic}

    def append(self, value: bytes | None, key: bytes | None, partition: int = 0, timestamp: int | None = None) -> int:
        """Append to the events topic; returns the offset."""
        log = self.events[partition]
        stamp = int(self.now() * 1000) if timestamp is None else timestamp
        log.append(MemoryRecord(len(log), stamp, key, value))
        return len(log) - 1

    def rebalance(self) -> None:
        """Share the partitions among the members, moving as few as possible (cooperative sticky)."""
        if not self.members:
            return
        share = -(-self.partitions // len(self.members))
        owned = {member: set(list(member.owned)[:share]) for member in self.members}
        free = set(range(self.partitions)) - set(itertools.chain.from_iterable(owned.values()))
        for member in sorted(self.members, key=lambda one: len(owned[one])):
            while free and len(owned[member]) < share:
                owned[member].add(free.pop())
        for member in self.members:
            member.reassign(owned[member])


class MemoryTransport:
    """One worker's connection to a `MemoryLog`.

    Failures are scripted by attributes, which a test may set at any time:

    hold: while true, published records stay in flight and nothing is delivered back.
    fail_next: so many of the next published records fail.
    refuse_commits: while true, commits fail.
    away: while true, the transport is not writable.
    crash_at(call, n): the n-th call of that method from now on raises `Crash` before it does anything.

    Args:
        log: the log.
        max_poll_records: most records of one poll.
    """

    keyed = True

    def __init__(self, log: MemoryLog, max_poll_records: int = 500) -> None:
        self._log = log
        self._max_poll_records = max_poll_records
        self.partitions = log.partitions
        self.owned: dict[int, int | None] = {}  # partition -> next offset, None before seek
        self._revoked: list[int] = []
        self._assigned: list[int] = []
        self._held: list[tuple[Topic, MemoryRecord, Any]] = []
        self._deliveries: list[Delivery] = []
        self._commits: list[Commit] = []
        self.hold = False
        self.fail_next = 0
        self.refuse_commits = False
        self.away = False
        self._crash: tuple[str, int] | None = None  # the call, and how many more of them go well

    def open(self) -> None:
        """Join the group."""
        self._log.members.append(self)
        self._log.rebalance()

    def reassign(self, partitions: set[int]) -> None:
        """Called by the log: these are ours from the next poll on."""
        self._revoked += [number for number in self.owned if number not in partitions]
        self._assigned = [number for number in self._assigned if number in partitions]
        self._assigned += sorted(partitions - self.owned.keys())
        self.owned = {number: self.owned.get(number) for number in sorted(partitions)}

    def poll(self, timeout_s: float) -> Polled:
        """See `Transport`; never waits."""
        self._script("poll")
        polled = Polled(self._revoked, [self._position(number) for number in self._assigned], {})
        self._revoked, self._assigned = [], []
        records: dict[int, Sequence[MemoryRecord]] = {}
        room = self._max_poll_records
        for number, offset in self.owned.items():
            if offset is None or not room:
                continue
            if offset < self._log.start.get(number, 0):
                raise DataError(f"events-{number}@{offset}: the log no longer has this position.")
            records[number] = self._log.events[number][offset : offset + room]
            room -= len(records[number])
            self.owned[number] = offset + len(records[number])
        polled.records = {number: batch for number, batch in records.items() if batch}
        return polled

    def seek(self, partition: int, offset: int) -> None:
        """See `Transport`."""
        self._script("seek")
        if partition in self.owned:
            self.owned[partition] = offset

    def position(self, partition: int) -> int:
        """See `Transport`."""
        offset = self.owned.get(partition)
        return -1 if offset is None else offset

    def publish(
        self,
        topic: Topic,
        key: bytes | None,
        value: bytes | None,
        token: Any,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        """See `Transport`; written at once unless held."""
        self._script("publish")
        record = MemoryRecord(-1, int(self._log.now() * 1000), key, value, tuple(headers))
        self._held.append((topic, record, token))
        if not self.hold:
            self.release()

    def release(self) -> None:
        """Let what is in flight arrive, or fail."""
        for topic, record, token in self._held:
            failed = self.fail_next > 0
            self.fail_next -= failed
            if not failed:
                log = self._log.topics[topic]
                log.append(MemoryRecord(len(log), record.timestamp, record.key, record.value, record.headers))
            self._deliveries.append(Delivery(token, failed, self._log.now()))
        self._held = []

    def deliveries(self) -> Sequence[Delivery]:
        """See `Transport`."""
        done, self._deliveries = self._deliveries, []
        return done

    @property
    def in_flight(self) -> int:
        """See `Transport`."""
        return len(self._held)

    @property
    def writable(self) -> bool:
        """See `Transport`; false while `away` is set."""
        return not self.away

    def flush(self, timeout_s: float) -> None:
        """See `Transport`; what is held stays held, as with a log that does not answer."""
        self._script("flush")
        if not self.hold:
            self.release()

    def commit(self, positions: Mapping[int, int]) -> None:
        """See `Transport`; done at once."""
        self.commit_now(positions, 0)

    def commit_now(self, positions: Mapping[int, int], timeout_s: float) -> bool:
        """See `Transport`."""
        self._script("commit")
        if self.refuse_commits:
            self._commits.append(Commit(positions, "refused"))
            return False
        self._log.committed |= {number: offset for number, offset in positions.items() if number in self.owned}
        self._commits.append(Commit(positions, None))
        return True

    def commits(self) -> Sequence[Commit]:
        """See `Transport`."""
        done, self._commits = self._commits, []
        return done

    @property
    def contact_age_s(self) -> float:
        """See `Transport`."""
        return math.inf if self.away or self not in self._log.members else 0.0

    def lag(self) -> Mapping[int, int]:
        """See `Transport`."""
        return {
            number: len(self._log.events[number]) - offset
            for number, offset in self.owned.items()
            if offset is not None
        }

    def close(self) -> None:
        """Leave the group."""
        if self in self._log.members:
            self._log.members.remove(self)
            self.owned = {}
            self._log.rebalance()

    def _position(self, number: int) -> Assigned:
        start = self._log.start.get(number, 0)
        return Assigned(number, start, len(self._log.events[number]), self._log.committed.get(number))

    def crash_at(self, call: str, n: int = 1) -> None:
        """Script a kill -9."""
        self._crash = call, n - 1

    def _script(self, call: str) -> None:
        if self._crash is None or self._crash[0] != call:
            return
        if self._crash[1] == 0:
            raise Crash(f"scripted crash at {call}")
        self._crash = call, self._crash[1] - 1
