"""What every client of Kafka's group has in common: which partitions are ours, since when, and what they deliver.

A client library is a subclass: it fetches, and says what the group told it. That is noted in `_rebalances` and
followed by `poll`, on the main thread, before what was fetched is used.
"""

import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import structlog

from stream_worker.errors import DataError
from stream_worker.settings import Settings
from stream_worker.topics import inspect, partition_of
from stream_worker.transports.base import Assigned, Cause, Change, Delivery, Outcome, Polled, Record, Topic
from stream_worker.transports.changelog_reader import ChangelogReader
from stream_worker.transports.checkpoint_writer import CheckpointWriter
from stream_worker.transports.list_producer import ListProducer

log = structlog.get_logger(__name__)

REQUEST_TIMEOUT_S = 5.0  # of one question to the broker on the main thread
ASK_AGAIN_S = 0.2  # after one that was not answered
# A partition that was being read while a fetch of the others went out waits for that fetch to end: this long, if they
# are silent. Measured at 200 events/s on two partitions: the worst second's p99 is 480 ms at 500, 125 ms at 100.
FETCH_MAX_WAIT_MS = 100
# States of one poll: as many as the client gives at once, or so few that fresh events of other partitions hardly wait.
RESTORE_RECORDS, RESTORE_RECORDS_BESIDE = 5000, 500
LATE_RECORDS_BESIDE = 1000  # of partitions that are catching up, for the same reason


class Membership(NamedTuple):
    """Who we are in the group: what a checkpoint is fenced by.

    settled: whether the group knows us by this, as far as the client says; false in the midst of a join.
    native: the client's own object.
    """

    member_id: str
    generation: int
    settled: bool
    native: Any


class Bounds(NamedTuple):
    """Where partitions start and end, by number, and the topic's id."""

    starts: Mapping[int, int]
    ends: Mapping[int, int]
    topic_id: str


class GroupTransport(ABC):
    """See `Transport`.

    Args:
        settings: see there.
        changelog, checkpoints: of the same client.
    """

    keyed = True

    def __init__(self, settings: Settings, changelog: ChangelogReader[Any], checkpoints: CheckpointWriter[Any]) -> None:
        self._settings = s = settings
        self._topics = {Topic.RECOMMENDATIONS: s.recommendations_topic, Topic.REJECTED: s.rejected_topic}
        self.partitions = 0
        self.topic_id = ""
        self._producer: ListProducer[Any] | None = None
        self._changelog = changelog
        self._checkpoints = checkpoints
        self._rebalances: deque[tuple[bool, list[int]]] = deque()  # gained or not; what and when, is the client's
        self._unresolved: list[int] = []  # assigned, ends not yet asked for
        self._ours: set[int] = set()  # assigned, ends known
        self._next: dict[int, int] = {}  # those of them that deliver: the offset that is delivered next
        self._told: list[int] = []  # those of which the log says that they are not resolved
        self._resolve_after = -math.inf  # monotonic
        self._held = False
        self._membership: Membership | None = None  # as it was when the last poll began to drain rebalances
        self._member_id = ""
        self._refused: Outcome | None = None  # a checkpoint that was not even begun
        self._contact_at = -math.inf  # monotonic

    def open(self) -> None:
        """See `Transport`."""
        found = inspect(self._settings, self._settings.group)
        self.partitions, self.topic_id = found.partitions, found.topic_id
        self._connect()

    def poll(self, timeout_s: float, late: Collection[int] = ()) -> Polled:
        """See `Transport`."""
        serving = bool(self._next)
        states, restored = self._changelog.poll(
            0 if serving else timeout_s, RESTORE_RECORDS_BESIDE if serving else RESTORE_RECORDS
        )
        batches = self._poll_events(0 if states or restored else timeout_s, late)
        revoked = self._drain_rebalances()
        self._changelog.stop(revoked)
        gone = set(revoked)
        assigned = self._resolve()
        records = {number: batch for number, batch in batches.items() if number in self._next}  # not revoked just now
        for number, offset in self._next.items():
            after = records[number][-1].offset + 1 if number in records else offset
            self._next[number] = max(after, self._position(number))
        return Polled(
            revoked,
            assigned,
            {number: batch for number, batch in states.items() if number not in gone},
            [number for number in restored if number not in gone],
            records,
            dict(self._next),
        )

    def publish(
        self,
        topic: Topic,
        key: bytes | None,
        value: bytes | None,
        token: Any,
        headers: Sequence[tuple[str, bytes]] = (),
        timestamp_ms: int | None = None,
    ) -> None:
        """See `Transport`."""
        assert self._producer is not None
        self._producer.send(self._topics[topic], key, value, token, list(headers), timestamp_ms)

    def push(self) -> None:
        """See `Transport`."""
        assert self._producer is not None
        self._producer.push()

    def deliveries(self) -> Sequence[Delivery]:
        """See `Transport`."""
        assert self._producer is not None
        return self._producer.deliveries()

    @property
    def in_flight(self) -> int:
        """See `Transport`."""
        return self._producer.in_flight if self._producer else 0

    @property
    def writable(self) -> bool:
        """See `Transport`."""
        return self._producer is not None and self._producer.usable()

    def flush(self, timeout_s: float) -> None:
        """See `Transport`."""
        if self._producer:
            self._producer.flush(timeout_s)

    def checkpoint(self, changes: Iterable[Change], positions: Mapping[int, int]) -> None:
        """See `Transport`."""
        membership = self._membership
        # A metadata without a generation is accepted by the broker from anybody: it is no fence.
        member = membership is not None and membership.generation >= 0 and membership.member_id == self._member_id
        if membership is None or not member or not self._member_id:
            self._refused = Outcome(Cause.MEMBERSHIP, "not a member of the group at this moment")
            return
        self._checkpoints.start(changes, positions, membership.native)

    def checkpointed(self, timeout_s: float = 0) -> Outcome | None:
        """See `Transport`."""
        refused, self._refused = self._refused, None
        return refused or self._checkpoints.outcome(timeout_s)

    def home(self, key: bytes) -> int:
        """See `Transport`."""
        return partition_of(key, self.partitions)

    def lag(self) -> Mapping[int, int]:
        """See `Transport`."""
        ends = {number: self._end(number) for number in self._next}
        return {number: max(0, end - self._next[number]) for number, end in ends.items() if end is not None}

    def close(self) -> None:
        """See `Transport`."""
        if self._producer:
            self._producer.close()
        self._checkpoints.close()
        self._changelog.close()
        self._disconnect()
        self._producer = None

    # -- what a client does --------------------------------------------------------------------------------------

    @abstractmethod
    def _connect(self) -> None:
        """Make the producer, and join the group. Raises our own errors."""

    @abstractmethod
    def _disconnect(self) -> None:
        """Leave the group, if it was joined."""

    @abstractmethod
    def _poll_events(self, timeout_s: float, late: Collection[int]) -> Mapping[int, Sequence[Record]]:
        """Events by partition, none empty; what the group says goes to `_rebalances`."""

    @abstractmethod
    def _ask_membership(self) -> Membership:
        """Who we are now; without a question to the broker."""

    @abstractmethod
    def _halt(self, numbers: Sequence[int]) -> Sequence[int]:
        """Deliver nothing more of these before they are sought; returns those that are still assigned."""

    @abstractmethod
    def _bounds(self, numbers: Sequence[int]) -> Bounds | None:
        """Where these start and end, but for those that have no leader now; None if the broker does not answer."""

    @abstractmethod
    def _position(self, number: int) -> int:
        """The offset that the client reads next, if it has given all that lies before; 0 if it does not say."""

    @abstractmethod
    def _end(self, number: int) -> int | None:
        """The next offset to be written, as far as it is known without asking; None where it is not."""

    def _out_of_range(self, detail: str, topic_id: str) -> DataError:
        """The log has not the position asked for; `topic_id` is the topic's as of now."""
        topic = self._settings.events_topic
        if topic_id and topic_id != self.topic_id:
            return DataError(
                f"topic {topic!r}: it was deleted and made anew (id then {self.topic_id}, now {topic_id}). To begin "
                "anew, name a new --state-topic and --recommendations-topic, and make them with `stream-worker topics "
                "--create`."
            )
        return DataError(
            f"topic {topic!r}: the position to read from is not retained ({detail}). Was the topic made anew? Else "
            "raise its retention above the longest outage."
        )

    # -- following the group -------------------------------------------------------------------------------------

    def _drain_rebalances(self) -> list[int]:
        # First the membership, then what happened before it: a checkpoint under it holds nothing that was taken.
        self._membership = membership = self._ask_membership()
        revoked: list[int] = []
        while self._rebalances:
            gained, numbers = self._rebalances.popleft()
            if gained:
                self._unresolved += numbers
            else:
                revoked += self._revoke(numbers)
        if membership.settled and membership.member_id != self._member_id:
            # The group had thrown us out, and others may have owned what we kept. The client does not always tell:
            # it does not if it learns so while it joins.
            kept = sorted(self._ours)
            if kept:
                log.warning("joined anew, restoring all partitions", partitions=kept)
                revoked += self._revoke(kept)
                self._unresolved += self._halt(kept)
            self._member_id = membership.member_id
        return revoked

    def _revoke(self, numbers: Sequence[int]) -> Sequence[int]:
        self._unresolved = [number for number in self._unresolved if number not in numbers]
        self._ours -= set(numbers)
        for number in numbers:
            self._next.pop(number, None)
        return numbers

    def _resolve(self) -> list[Assigned]:
        """Ask where new partitions begin and end; those the broker does not answer for are asked again next time."""
        if not self._unresolved or time.monotonic() < self._resolve_after:
            return []
        bounds = self._bounds(self._unresolved)
        new = [number for number in self._unresolved if bounds is not None and number in bounds.ends]
        self._unresolved = [number for number in self._unresolved if number not in new]
        if self._unresolved:
            self._resolve_after = time.monotonic() + ASK_AGAIN_S
            if self._unresolved != self._told:
                log.warning("partitions without a leader, or an answer; asking again", partitions=self._unresolved)
        self._told = self._unresolved
        if bounds is None or not new:
            return []
        self.topic_id = bounds.topic_id or self.topic_id
        self._ours |= set(new)
        self._changelog.start(new)
        return [Assigned(number, bounds.starts[number], bounds.ends[number]) for number in new]
