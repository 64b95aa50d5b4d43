"""Kafka through kafka-python: a cooperative consumer group in, an idempotent producer out.

The client runs IO threads. They only append to deques; the main thread empties them in `poll` and `deliveries`. Every
foreign exception is mapped here, in `kafka_*.py` and in `topics.py`.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import structlog
from kafka import ConsumerRebalanceListener, KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import (
    FencedInstanceIdError,
    KafkaConfigurationError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)
from kafka.structs import ConsumerGroupMetadata, MemberState

from stream_worker.errors import DataError, FencedError, SettingsError
from stream_worker.settings import Settings
from stream_worker.topics import away, inspect, partition_of
from stream_worker.transports.base import Assigned, Cause, Change, Delivery, Outcome, Polled, Record, Topic
from stream_worker.transports.kafka_changelog import ChangelogReader
from stream_worker.transports.kafka_checkpoint import CheckpointProducer
from stream_worker.transports.kafka_mends import ConsumerMends
from stream_worker.transports.kafka_producer import REQUEST_TIMEOUT_S, ListProducer
from stream_worker.transports.kafka_topics import TopicWatch

log = structlog.get_logger(__name__)

# A partition that was being read while a fetch of the others went out waits for that fetch to end: this long, if they
# are silent. Measured at 200 events/s on two partitions: the worst second's p99 is 480 ms at 500, 125 ms at 100.
FETCH_MAX_WAIT_MS = 100
# States of one poll: as many as the client gives at once, or so few that fresh events of other partitions hardly wait.
RESTORE_RECORDS, RESTORE_RECORDS_BESIDE = 5000, 500
LATE_RECORDS_BESIDE = 1000  # of partitions that are catching up, for the same reason


def consumer_options(settings: Settings) -> dict[str, Any]:
    """The consumer's settings."""
    s = settings
    return {
        "bootstrap_servers": s.bootstrap.split(","),
        "group_id": s.group,
        "group_instance_id": s.group_instance_id,
        "enable_auto_commit": False,
        "auto_offset_reset": "none",  # where to start is ours to decide, always
        "isolation_level": "read_committed",
        "allow_auto_create_topics": False,
        "partition_assignment_strategy": [CooperativeStickyAssignor],
        "session_timeout_ms": int(s.session_timeout_s * 1000),
        "heartbeat_interval_ms": int(s.session_timeout_s * 250),
        "max_poll_interval_ms": max(60_000, int(s.session_timeout_s * 2000)),
        "max_poll_records": s.max_poll_records,
        "fetch_min_bytes": 1,
        "fetch_max_wait_ms": FETCH_MAX_WAIT_MS,
        "reconnect_backoff_max_ms": 1000,  # with the default two workers did not recover within a minute
    }


class KafkaTransport:
    """See `Transport`."""

    keyed = True

    def __init__(self, settings: Settings) -> None:
        self._settings = s = settings
        self._topics = {Topic.RECOMMENDATIONS: s.recommendations_topic, Topic.REJECTED: s.rejected_topic}
        self.partitions = 0
        self.topic_id = ""
        self._consumer: KafkaConsumer | None = None
        self._mends: ConsumerMends | None = None
        self._producer: ListProducer | None = None
        self._changelog = ChangelogReader(s)
        self._checkpoints = CheckpointProducer(s)
        self._topic_watch = TopicWatch(s)
        self._rebalances: deque[tuple[str, list[int]]] = deque()  # written by the client's IO thread
        self._unresolved: list[int] = []  # assigned, ends not yet asked for
        self._ours: set[int] = set()  # assigned, ends known
        self._next: dict[int, int] = {}  # those of them that deliver: the offset after the last record delivered
        self._held = False
        self._membership: ConsumerGroupMetadata | None = None  # as it was when the last poll began to drain rebalances
        self._member_id = ""
        self._refused: Outcome | None = None  # a checkpoint that was not even begun
        self._contact_at = -math.inf  # monotonic

    def open(self) -> None:
        """See `Transport`."""
        s = self._settings
        found = inspect(s)
        self.partitions, self.topic_id = found.partitions, found.topic_id
        try:
            self._producer = ListProducer(s)
            self._consumer = KafkaConsumer(**consumer_options(s))
            self._mends = ConsumerMends(self._consumer)
            self._consumer.subscribe([s.events_topic], listener=_Listener(self._rebalanced))
            # Loads the metadata of what is subscribed. A leader that joins without them assigns nothing, or joins again
            # as soon as they come: then a static member's restart is a rebalance.
            self._consumer.partitions_for_topic(s.events_topic)
        except KafkaConfigurationError as error:
            raise SettingsError(f"broker {s.bootstrap}: {error}.") from error
        except KafkaError as error:
            raise away(s, error) from error

    def poll(self, timeout_s: float, late: Collection[int] = ()) -> Polled:
        """See `Transport`."""
        serving = bool(self._next)
        states, restored = self._changelog.poll(
            0 if serving else timeout_s, RESTORE_RECORDS_BESIDE if serving else RESTORE_RECORDS
        )
        batches = self._poll_events(0 if states or restored else timeout_s, late)
        if self._open_mends.fenced:
            raise self._fenced()
        revoked = self._drain_rebalances()
        self._changelog.stop(revoked)
        gone = set(revoked)
        assigned = self._resolve()
        records: dict[int, Sequence[Record]] = {}
        for topic_partition, batch in batches.items():
            if topic_partition.partition in self._next:  # not revoked during this very poll
                records[topic_partition.partition] = batch
                self._next[topic_partition.partition] = batch[-1].offset + 1
        return Polled(
            revoked,
            assigned,
            {number: batch for number, batch in states.items() if number not in gone},
            [number for number in restored if number not in gone],
            records,
        )

    def _poll_events(self, timeout_s: float, late: Collection[int]) -> Mapping[TopicPartition, Sequence[Record]]:
        if self._open_mends.heartbeat_overdue:
            time.sleep(timeout_s)
            timeout_s = 0
        consumer, most = self._open_consumer, self._settings.max_poll_records
        behind = consumer.assignment() & {self._partition(number) for number in late if number in self._next}
        if not behind or self._held or len(behind) == len(self._next):
            return self._poll_client(timeout_s, most)
        consumer.pause(*behind)
        try:
            fresh = self._poll_client(0, most)
        finally:
            consumer.resume(*(behind & consumer.assignment()))
        rest = self._poll_client(0 if fresh else timeout_s, min(most, LATE_RECORDS_BESIDE))
        return {one: [*fresh.get(one, ()), *rest.get(one, ())] for one in fresh.keys() | rest.keys()}

    def _poll_client(self, timeout_s: float, max_records: int) -> Mapping[TopicPartition, Sequence[Record]]:
        self._open_mends.before_poll()
        try:
            return self._open_consumer.poll(timeout_ms=int(timeout_s * 1000), max_records=max_records)  # type: ignore[no-any-return]
        except (OffsetOutOfRangeError, NoOffsetForPartitionError) as error:
            raise DataError(
                f"topic {self._settings.events_topic!r}: the position to read from is not retained ({error}). Was the "
                "topic made anew? Else raise its retention above the longest outage."
            ) from error
        except FencedInstanceIdError as error:
            raise self._fenced() from error
        except KafkaError as error:
            if not error.retriable:
                raise
            log.warning("poll failed, trying again", error=str(error))
            return {}

    def _fenced(self) -> FencedError:
        return FencedError(
            f"group instance {self._settings.group_instance_id!r}: another process has joined under this name"
        )

    def seek(self, partition: int, offset: int) -> None:
        """See `Transport`."""
        consumer, topic_partition = self._open_consumer, self._partition(partition)
        if topic_partition in consumer.assignment():
            consumer.seek(topic_partition, offset)
            self._next[partition] = offset
            if not self._held:
                consumer.resume(topic_partition)

    def hold(self, held: bool) -> None:
        """See `Transport`."""
        if held == self._held:
            return
        self._held = held
        consumer = self._open_consumer
        ours = consumer.assignment() & {self._partition(number) for number in self._next}
        if ours:
            (consumer.pause if held else consumer.resume)(*ours)

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
        member = membership is not None and membership.generation_id >= 0 and membership.member_id == self._member_id
        if not member or not self._member_id:
            self._refused = Outcome(Cause.MEMBERSHIP, "not a member of the group at this moment")
            return
        offsets = {self._partition(number): OffsetAndMetadata(offset, "", -1) for number, offset in positions.items()}
        self._checkpoints.start(changes, offsets, membership)

    def checkpointed(self, timeout_s: float = 0) -> Outcome | None:
        """See `Transport`."""
        refused, self._refused = self._refused, None
        return refused or self._checkpoints.outcome(timeout_s)

    @property
    def contact_age_s(self) -> float:
        """See `Transport`; from the group's heartbeats, which go on while there is nothing to read."""
        if self._consumer is None:
            return math.inf
        heartbeat = self._consumer._coordinator.heartbeat  # noqa: SLF001 - the public metric tells what was sent only
        if heartbeat.last_receive >= heartbeat.last_send:  # answered, and none asked since
            self._contact_at = max(self._contact_at, heartbeat.last_send)
        return time.monotonic() - self._contact_at

    def home(self, key: bytes) -> int:
        """See `Transport`."""
        return partition_of(key, self.partitions)

    def missing_topics(self) -> Sequence[str]:
        """See `Transport`."""
        return self._topic_watch.missing(self._open_consumer)

    def lag(self) -> Mapping[int, int]:
        """See `Transport`."""
        consumer = self._open_consumer
        lag = {}
        for number, following in self._next.items():
            topic_partition = self._partition(number)
            if topic_partition in consumer.assignment():
                lag[number] = max(0, (consumer.highwater(topic_partition) or following) - following)
        return lag

    def close(self) -> None:
        """See `Transport`."""
        if self._producer:
            self._producer.close()
        self._checkpoints.close()
        self._changelog.close()
        if self._consumer:
            try:
                self._consumer.close(autocommit=False, timeout_ms=int(REQUEST_TIMEOUT_S * 1000))
            except KafkaError as error:
                log.warning("the consumer did not close in order", error=str(error))
        self._producer = self._consumer = None

    @property
    def _open_consumer(self) -> KafkaConsumer:
        assert self._consumer is not None, "open() comes first"
        return self._consumer

    @property
    def _open_mends(self) -> ConsumerMends:
        assert self._mends is not None, "open() comes first"
        return self._mends

    def _partition(self, number: int) -> TopicPartition:
        return TopicPartition(self._settings.events_topic, number)

    def _rebalanced(self, kind: str, partitions: Sequence[TopicPartition]) -> None:
        """On the client's IO thread: note it, and hold new partitions still until the main thread has looked."""
        if kind == "assigned" and partitions and self._consumer is not None:
            self._consumer.pause(*partitions)
            for topic_partition in partitions:
                self._consumer.seek(topic_partition, 0)  # any position, so that the client does not ask for one
        self._rebalances.append((kind, [topic_partition.partition for topic_partition in partitions]))

    def _drain_rebalances(self) -> list[int]:
        # First the membership, then what happened before it: a checkpoint under it holds nothing that was taken.
        self._membership = membership = self._open_consumer.group_metadata()
        revoked: list[int] = []
        while self._rebalances:
            kind, numbers = self._rebalances.popleft()
            if kind == "assigned":
                self._contact_at = time.monotonic()
                self._unresolved += numbers
            else:
                revoked += self._revoke(numbers)
        if membership.state is MemberState.STABLE and membership.member_id != self._member_id:
            # The group had thrown us out, and others may have owned what we kept. The client does not always tell:
            # it does not if it learns so while it joins.
            kept = sorted(self._ours)
            if kept:
                log.warning("joined anew, restoring all partitions", partitions=kept)
                revoked += self._revoke(kept)
                still = {topic_partition.partition for topic_partition in self._open_consumer.assignment()}
                self._open_consumer.pause(*(self._partition(number) for number in kept if number in still))
                self._unresolved += [number for number in kept if number in still]
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
        if not self._unresolved:
            return []
        consumer = self._open_consumer
        timeout_ms = int(REQUEST_TIMEOUT_S * 1000)
        partitions = [self._partition(number) for number in self._unresolved]
        try:
            start = consumer.beginning_offsets(partitions, timeout_ms=timeout_ms)
            end = consumer.end_offsets(partitions, timeout_ms=timeout_ms)
        except KafkaError as error:
            log.warning("where partitions end is not known yet, asking again", error=str(error))
            return []
        self.topic_id = str(consumer._cluster.topic_id(self._settings.events_topic) or self.topic_id)  # noqa: SLF001
        self._ours |= set(self._unresolved)
        self._unresolved = []
        self._changelog.start([one.partition for one in partitions])
        return [Assigned(one.partition, start[one], end[one]) for one in partitions]


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, note: Callable[[str, Sequence[TopicPartition]], None]) -> None:
        self._note = note

    def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        self._note("assigned", list(assigned))

    def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        self._note("revoked", list(revoked))

    def on_partitions_lost(self, lost: Sequence[TopicPartition]) -> None:
        self._note("lost", list(lost))
