"""Kafka through kafka-python: a cooperative consumer group in, an idempotent producer out.

The client runs IO threads. They only append to deques; the main thread empties them in `poll` and `deliveries`. Every
foreign exception is mapped here, in `kafka_producer.py` and in `topics.py`.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
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
from kafka.structs import MemberState

from stream_worker.errors import DataError, FencedError, SettingsError, TransportError
from stream_worker.settings import Settings
from stream_worker.transports.base import Assigned, Commit, Delivery, Polled, Record, Topic
from stream_worker.transports.kafka_producer import REQUEST_TIMEOUT_S, ListProducer

log = structlog.get_logger(__name__)

# A partition that was being read while a fetch of the others went out waits for that fetch to end: this long, if they
# are silent. Measured at 200 events/s on two partitions: the worst second's p99 is 480 ms at 500, 125 ms at 100.
FETCH_MAX_WAIT_MS = 100


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
        self._names = (s.events_topic, *self._topics.values())
        self.partitions = 0
        self._consumer: KafkaConsumer | None = None
        self._producer: ListProducer | None = None
        self._rebalances: deque[tuple[str, list[int]]] = deque()  # written by the client's IO thread
        self._unresolved: list[int] = []  # assigned, positions not yet asked for
        self._next: dict[int, int] = {}  # of partitions that deliver: the offset after the last record delivered
        self._joined_at: float | None = None
        self._commits: list[Commit] = []
        self._fenced: KafkaError | None = None

    def open(self) -> None:
        """See `Transport`."""
        s = self._settings
        try:
            self._producer = ListProducer(s)
            self._consumer = KafkaConsumer(**consumer_options(s))
            # Asking first also loads the metadata, without which some joins hang for ever.
            partitions = {name: self._consumer.partitions_for_topic(name) for name in self._names}
        except KafkaConfigurationError as error:
            raise SettingsError(f"broker {s.bootstrap}: {error}.") from error
        except KafkaError as error:
            raise TransportError(f"broker {s.bootstrap}: {error}. Is it running, and the address right?") from error
        missing = [name for name, numbers in partitions.items() if not numbers]
        if missing:
            raise DataError(f"broker {s.bootstrap}: no topic {missing}. Run `stream-worker topics --create`.")
        self.partitions = len(partitions[s.events_topic])
        self._consumer.subscribe([s.events_topic], listener=_Listener(self._rebalanced))

    def poll(self, timeout_s: float) -> Polled:
        """See `Transport`."""
        consumer = self._open_consumer
        if self._fenced:
            raise FencedError(f"group instance {self._settings.group_instance_id!r}: {self._fenced}")
        try:
            batches = consumer.poll(timeout_ms=int(timeout_s * 1000))
        except (OffsetOutOfRangeError, NoOffsetForPartitionError) as error:
            raise DataError(
                f"topic {self._settings.events_topic!r}: the position to read from is no longer retained ({error}). "
                "Raise the topic's retention above the longest outage."
            ) from error
        except FencedInstanceIdError as error:
            raise FencedError(f"group instance {self._settings.group_instance_id!r}: {error}") from error
        except KafkaError as error:
            if not error.retriable:
                raise
            log.warning("poll failed, trying again", error=str(error))
            batches = {}
        self._mend_join()
        revoked = self._drain_rebalances()
        assigned = self._resolve()
        records: dict[int, Sequence[Record]] = {}
        for topic_partition, batch in batches.items():
            if topic_partition.partition in self._next:  # not revoked during this very poll
                records[topic_partition.partition] = batch
                self._next[topic_partition.partition] = batch[-1].offset + 1
        return Polled(revoked, assigned, records)

    def seek(self, partition: int, offset: int) -> None:
        """See `Transport`."""
        consumer, topic_partition = self._open_consumer, self._partition(partition)
        if topic_partition in consumer.assignment():
            consumer.seek(topic_partition, offset)
            consumer.resume(topic_partition)
            self._next[partition] = offset

    def position(self, partition: int) -> int:
        """See `Transport`."""
        topic_partition = self._partition(partition)
        if partition not in self._next or topic_partition not in self._open_consumer.assignment():
            return -1
        position: int | None = self._open_consumer.position(topic_partition, timeout_ms=100)
        return -1 if position is None else position

    def publish(
        self,
        topic: Topic,
        key: bytes | None,
        value: bytes | None,
        token: Any,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        """See `Transport`."""
        assert self._producer is not None
        self._producer.send(self._topics[topic], key, value, token, list(headers))

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

    def commit(self, positions: Mapping[int, int]) -> None:
        """See `Transport`."""
        try:
            self._open_consumer.commit_async(self._offsets(positions), callback=self._committed)
        except KafkaError as error:
            self._committed(self._offsets(positions), error)

    def commit_now(self, positions: Mapping[int, int], timeout_s: float) -> bool:
        """See `Transport`."""
        offsets = self._offsets(positions)
        try:
            self._open_consumer.commit(offsets, timeout_ms=int(timeout_s * 1000))
        except KafkaError as error:
            self._committed(offsets, error)
            return False
        self._committed(offsets, None)
        return True

    def commits(self) -> Sequence[Commit]:
        """See `Transport`."""
        done, self._commits = self._commits, []
        return done

    @property
    def contact_age_s(self) -> float:
        """See `Transport`; from the group's heartbeats, which go on while there is nothing to read."""
        if self._consumer is None or self._joined_at is None:
            return math.inf
        metrics = self._consumer.metrics()["consumer-coordinator-metrics"]
        since_joined_s = time.monotonic() - self._joined_at  # the first heartbeat comes a while later
        return min(since_joined_s, float(metrics["last-heartbeat-seconds-ago"]))

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

    def _partition(self, number: int) -> TopicPartition:
        return TopicPartition(self._settings.events_topic, number)

    def _offsets(self, positions: Mapping[int, int]) -> dict[TopicPartition, OffsetAndMetadata]:
        return {
            self._partition(number): OffsetAndMetadata(offset, "", -1)
            for number, offset in positions.items()
            if number in self._next
        }

    def _committed(self, offsets: Mapping[TopicPartition, OffsetAndMetadata], result: object) -> None:
        cause = None
        if isinstance(result, Exception):
            cause = type(result).__name__
            log.warning("positions not committed", error=str(result))
        if isinstance(result, FencedInstanceIdError):
            self._fenced = result
        self._commits.append(Commit({one.partition: offset.offset for one, offset in offsets.items()}, cause))

    def _mend_join(self) -> None:
        """Ask again for a join that nobody waits for any more.

        kafka-python 3.0.12: a rejoin because of new metadata, whose first poll gave up half-way, is never awaited
        again, because the metadata is no longer new. The member stays "rebalancing": records come, commits are
        refused, and heartbeats stop. While a join is under way the flag is set anyway: setting it does no harm.
        """
        if self._open_consumer.group_metadata().state is MemberState.REBALANCING:
            self._open_consumer._coordinator.request_rejoin()  # noqa: SLF001 - there is no public way

    def _rebalanced(self, kind: str, partitions: Sequence[TopicPartition]) -> None:
        """On the client's IO thread: note it, and hold new partitions still until the main thread has looked."""
        if kind == "assigned" and partitions and self._consumer is not None:
            self._consumer.pause(*partitions)
            for topic_partition in partitions:
                self._consumer.seek(topic_partition, 0)  # any position, so that the client does not ask for one
        self._rebalances.append((kind, [topic_partition.partition for topic_partition in partitions]))

    def _drain_rebalances(self) -> list[int]:
        revoked: list[int] = []
        while self._rebalances:
            kind, numbers = self._rebalances.popleft()
            if kind == "assigned":
                self._joined_at = time.monotonic()
                self._unresolved += numbers
            else:
                revoked += numbers
                self._unresolved = [number for number in self._unresolved if number not in numbers]
                for number in numbers:
                    self._next.pop(number, None)
        return revoked

    def _resolve(self) -> list[Assigned]:
        """Ask for the positions of new partitions; those the broker does not answer for are asked again next time."""
        if not self._unresolved:
            return []
        consumer = self._open_consumer
        timeout_ms = int(REQUEST_TIMEOUT_S * 1000)
        partitions = [self._partition(number) for number in self._unresolved]
        try:
            start = consumer.beginning_offsets(partitions, timeout_ms=timeout_ms)
            end = consumer.end_offsets(partitions, timeout_ms=timeout_ms)
            committed = {one: consumer.committed(one, timeout_ms=timeout_ms) for one in partitions}
        except KafkaError as error:
            log.warning("positions not known yet, asking again", error=str(error))
            return []
        self._unresolved = []
        return [Assigned(one.partition, start[one], end[one], committed[one]) for one in partitions]


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, note: Callable[[str, Sequence[TopicPartition]], None]) -> None:
        self._note = note

    def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        self._note("assigned", list(assigned))

    def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        self._note("revoked", list(revoked))

    def on_partitions_lost(self, lost: Sequence[TopicPartition]) -> None:
        self._note("lost", list(lost))
