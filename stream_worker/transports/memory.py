"""A log in memory, for tests and for trying things: partitions in lists, consumer groups, scripted failures.

`MemoryLog` is the broker, `MemoryTransport` one worker's connection to it. No threads, no clock of its own.
"""

import itertools
import math
import zlib
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stream_worker.errors import DataError
from stream_worker.transports.base import Assigned, Cause, Change, Delivery, Outcome, Polled, Topic


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
    changelog: list[list[MemoryRecord]] = field(init=False)  # of committed transactions
    committed: dict[int, int] = field(default_factory=dict)  # the group's positions
    generation: int = 0
    topic_id: str = "memory"
    members: list["MemoryTransport"] = field(default_factory=list)
    start: dict[int, int] = field(default_factory=dict)  # first offset retained, 0 unless set

    def __post_init__(self) -> None:
        """Make the topics, empty."""
        self.events = [[] for _ in range(self.partitions)]
        self.changelog = [[] for _ in range(self.partitions)]
        self.topics = {topic: [] for topic in Topic}

    def append(self, value: bytes | None, key: bytes | None, partition: int = 0, timestamp: int | None = None) -> int:
        """Append to the events topic; returns the offset."""
        log = self.events[partition]
        stamp = int(self.now() * 1000) if timestamp is None else timestamp
        log.append(MemoryRecord(len(log), stamp, key, value))
        return len(log) - 1

    def compact(self) -> None:
        """Keep the last record of each key of the changelog, as the broker's log cleaner does."""
        for number, log in enumerate(self.changelog):
            last = {record.key: record for record in log}
            self.changelog[number] = sorted(last.values(), key=lambda record: record.offset)

    def rebalance(self) -> None:
        """Share the partitions among the members, moving as few as possible (cooperative sticky)."""
        self.generation += 1
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

    hold_published: while true, published records stay in flight and nothing is delivered back.
    fail_next: so many of the next published records fail.
    fail_checkpoints: the cause for which checkpoints fail, while it is set; they are then aborted.
    lose_answers: while true, checkpoints are written, but their outcome is never learnt and taken for a failure.
    delay_checkpoints: while true, checkpoints stay under way.
    away: while true, the transport is not writable.
    stalled: while true, the group has not heard from us, and contact_age_s says so.
    crash_at(call, n): the n-th call of that method from now on raises `Crash` before it does anything. Of a
        checkpoint there are its steps, too: "checkpoint", "write", "commit", "confirm".

    Args:
        log: the log.
        max_poll_records: most records of one poll, events and states each.
    """

    keyed = True

    def __init__(self, log: MemoryLog, max_poll_records: int = 500) -> None:
        self._log = log
        self._max_poll_records = max_poll_records
        self.partitions = log.partitions
        self.topic_id = log.topic_id
        self.owned: dict[int, int | None] = {}  # partition -> next offset, None before seek
        self._revoked: list[int] = []
        self._assigned: list[int] = []
        self._held: list[tuple[Topic, MemoryRecord, Any]] = []
        self._deliveries: list[Delivery] = []
        self._restoring: dict[int, int] = {}  # partition -> next offset of its changelog
        self._fence = -1  # the generation when the last poll looked at rebalances
        self._checkpoint: tuple[list[Change], Mapping[int, int], int] | None = None
        self._events_held = False
        self.hold_published = False
        self.fail_next = 0
        self.fail_checkpoints: Cause | None = None
        self.lose_answers = False
        self.delay_checkpoints = False
        self.away = False
        self.stalled = False
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
        self._restoring = {number: offset for number, offset in self._restoring.items() if number in partitions}

    def poll(self, timeout_s: float, late: Collection[int] = ()) -> Polled:
        """See `Transport`; never waits."""
        self._script("poll")
        self._fence = self._log.generation if self in self._log.members else -1
        polled = Polled(self._revoked, [self._position(number) for number in self._assigned], *self._read_changelog())
        self._revoked, self._assigned = [], []
        records: dict[int, Sequence[MemoryRecord]] = {}
        room = 0 if self._events_held else self._max_poll_records
        for number, offset in sorted(self.owned.items(), key=lambda one: one[0] in late):
            if offset is None or not room:
                continue
            if offset < self._log.start.get(number, 0):
                raise DataError(f"events-{number}@{offset}: the log no longer has this position.")
            records[number] = self._log.events[number][offset : offset + room]
            room -= len(records[number])
            self.owned[number] = offset + len(records[number])
        polled.records = {number: batch for number, batch in records.items() if batch}
        polled.reached = {number: offset for number, offset in self.owned.items() if offset is not None}
        return polled

    def _read_changelog(self) -> tuple[dict[int, Sequence[MemoryRecord]], list[int]]:
        """Some records of each partition that is being restored, and which of them are done."""
        self._restoring |= dict.fromkeys(self._assigned, 0)
        states: dict[int, Sequence[MemoryRecord]] = {}
        done = []
        for number, offset in list(self._restoring.items()):
            log = self._log.changelog[number]
            place = bisect_left(log, offset, key=lambda record: record.offset)  # compaction moves places, not offsets
            if place < len(log):
                states[number] = log[place : place + self._max_poll_records]
                self._restoring[number] = states[number][-1].offset + 1
            else:
                done.append(number)
                del self._restoring[number]
        return states, done

    def seek(self, partition: int, offset: int) -> None:
        """See `Transport`."""
        self._script("seek")
        if partition in self.owned:
            self.owned[partition] = offset

    def hold(self, held: bool) -> None:
        """See `Transport`."""
        self._events_held = held

    def publish(
        self,
        topic: Topic,
        key: bytes | None,
        value: bytes | None,
        token: Any,
        headers: Sequence[tuple[str, bytes]] = (),
        timestamp_ms: int | None = None,
    ) -> None:
        """See `Transport`; written at once unless held."""
        self._script("publish")
        timestamp = int(self._log.now() * 1000) if timestamp_ms is None else timestamp_ms
        record = MemoryRecord(-1, timestamp, key, value, tuple(headers))
        self._held.append((topic, record, token))
        if not self.hold_published:
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

    def push(self) -> None:
        """See `Transport`: nothing stays behind."""

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
        if not self.hold_published:
            self.release()

    def checkpoint(self, changes: Iterable[Change], positions: Mapping[int, int]) -> None:
        """See `Transport`."""
        self._script("checkpoint")
        assert self._checkpoint is None, "one at a time"
        self._checkpoint = list(changes), positions, self._fence

    def checkpointed(self, timeout_s: float = 0) -> Outcome | None:
        """See `Transport`; it is written now, unless delayed."""
        if self._checkpoint is None or self.delay_checkpoints:
            return None
        (changes, positions, fence), self._checkpoint = self._checkpoint, None
        self._script("write")
        if self.fail_checkpoints:
            return Outcome(self.fail_checkpoints, "scripted")
        if fence != self._log.generation:
            return Outcome(Cause.MEMBERSHIP, f"generation {fence}, not {self._log.generation}")
        self._script("commit")
        for change in changes:
            log = self._log.changelog[change.partition]
            offset = log[-1].offset + 1 if log else 0
            log.append(MemoryRecord(offset, int(self._log.now() * 1000), change.key, change.value))
        self._log.committed |= positions
        self._script("confirm")
        return Outcome(Cause.BROKER, "the answer was lost") if self.lose_answers else Outcome(None)

    @property
    def contact_age_s(self) -> float:
        """See `Transport`."""
        return math.inf if self.away or self.stalled or self not in self._log.members else 0.0

    def home(self, key: bytes) -> int:
        """See `Transport`; a test may append its events elsewhere."""
        return zlib.crc32(key) % self.partitions

    def missing_topics(self) -> Sequence[str]:
        """See `Transport`."""
        return ()

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
        return Assigned(number, start, len(self._log.events[number]))

    def crash_at(self, call: str, n: int = 1) -> None:
        """Script a kill -9."""
        self._crash = call, n - 1

    def _script(self, call: str) -> None:
        if self._crash is None or self._crash[0] != call:
            return
        if self._crash[1] == 0:
            raise Crash(f"scripted crash at {call}")
        self._crash = call, self._crash[1] - 1
