"""Kafka through kafka-python: a cooperative consumer group in, an idempotent producer out.

The client runs IO threads. They only append to deques; the main thread empties them in `poll` and `deliveries`. Every
exception of the client is mapped here, in `kafka_*.py` and in `topics.py`.
"""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import structlog
from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import (
    AuthorizationError,
    FencedInstanceIdError,
    GroupMaxSizeReachedError,
    InconsistentGroupProtocolError,
    InvalidSessionTimeoutError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)
from kafka.structs import MemberState

from stream_worker.connection import for_kafka_python
from stream_worker.entrance import away, forbidden, made
from stream_worker.errors import DataError, SettingsError
from stream_worker.settings import Settings
from stream_worker.transports.base import Record
from stream_worker.transports.checkpoint_writer import instance_fenced
from stream_worker.transports.group import (
    FETCH_MAX_WAIT_MS,
    LATE_RECORDS_BESIDE,
    REQUEST_TIMEOUT_S,
    Bounds,
    GroupTransport,
    Membership,
)
from stream_worker.transports.kafka_changelog import KafkaPythonChangelog
from stream_worker.transports.kafka_checkpoint import KafkaPythonCheckpoints
from stream_worker.transports.kafka_mends import ConsumerMends
from stream_worker.transports.kafka_producer import KafkaPythonProducer
from stream_worker.transports.kafka_records import read_lightly
from stream_worker.transports.kafka_topics import TopicWatch

log = structlog.get_logger(__name__)

NO_LEADER = -1
GROUP_ERRORS = (GroupMaxSizeReachedError, InconsistentGroupProtocolError)


def consumer_options(settings: Settings) -> dict[str, Any]:
    """The consumer's settings."""
    s = settings
    return {
        **for_kafka_python(s),
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


class KafkaTransport(GroupTransport):
    """See `Transport`."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, KafkaPythonChangelog(settings), KafkaPythonCheckpoints(settings))
        self._consumer: KafkaConsumer | None = None
        self._mends: ConsumerMends | None = None
        self._topic_watch = TopicWatch(settings)
        self._gained_at = -math.inf  # monotonic

    def _connect(self) -> None:
        s = self._settings
        try:
            self._producer = KafkaPythonProducer(s)
            self._consumer = made(KafkaConsumer, consumer_options(s))
            self._mends = ConsumerMends(self._consumer)
            read_lightly(self._consumer)
            self._consumer.subscribe([s.events_topic], listener=_Listener(self._rebalanced))
            # Loads the metadata of what is subscribed. A leader that joins without them assigns nothing, or joins again
            # as soon as they come: then a static member's restart is a rebalance.
            self._consumer.partitions_for_topic(s.events_topic)
        except KafkaError as error:
            raise away(s, error) from error

    def _disconnect(self) -> None:
        if self._consumer:
            try:
                self._consumer.close(autocommit=False, timeout_ms=int(REQUEST_TIMEOUT_S * 1000))
            except KafkaError as error:
                log.warning("the consumer did not close in order", error=str(error))
        self._consumer = None

    def _poll_events(self, timeout_s: float, late: Collection[int]) -> Mapping[int, Sequence[Record]]:
        batches = self._poll_in_turn(timeout_s, late)
        if self._open_mends.fenced:
            raise instance_fenced(self._settings)
        return {topic_partition.partition: batch for topic_partition, batch in batches.items()}

    def _poll_in_turn(self, timeout_s: float, late: Collection[int]) -> Mapping[TopicPartition, Sequence[Record]]:
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
            raise self._out_of_range(str(error), self._topic_id()) from error
        except FencedInstanceIdError as error:
            raise instance_fenced(self._settings) from error
        except AuthorizationError as error:
            raise forbidden(self._settings, error) from error
        except InvalidSessionTimeoutError as error:
            raise SettingsError(
                f"--session-timeout-s {self._settings.session_timeout_s:g}: the brokers do not allow it. See their "
                "group.min.session.timeout.ms and group.max.session.timeout.ms: by default 6 s to 30 min."
            ) from error
        except GROUP_ERRORS as error:
            raise DataError(f"group {self._settings.group!r}: {error}. Choose another --group?") from error
        except KafkaError as error:
            if not error.retriable:
                raise
            log.warning("poll failed, trying again", error=str(error))
            return {}

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

    @property
    def contact_age_s(self) -> float:
        """See `Transport`; from the group's heartbeats, which go on while there is nothing to read."""
        if self._consumer is None:
            return math.inf
        heartbeat = self._consumer._coordinator.heartbeat  # noqa: SLF001 - the public metric tells what was sent only
        asked_at = heartbeat.last_send  # once: the client's thread may send the next one meanwhile
        if heartbeat.last_receive >= asked_at:  # answered, and none asked since
            self._contact_at = max(self._contact_at, asked_at)
        return time.monotonic() - self._contact_at

    def missing_topics(self) -> Sequence[str]:
        """See `Transport`."""
        return self._topic_watch.missing(self._open_consumer)

    def _position(self, number: int) -> int:
        # The public way may ask the broker.
        state = self._open_consumer._subscription.assignment.get(self._partition(number))  # noqa: SLF001
        return 0 if state is None or state.position is None else state.position.offset

    def _end(self, number: int) -> int | None:
        topic_partition = self._partition(number)
        if topic_partition not in self._open_consumer.assignment():
            return None
        return self._open_consumer.highwater(topic_partition) or self._next[number]

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

    def _rebalanced(self, gained: bool, partitions: Sequence[TopicPartition]) -> None:
        """On the client's IO thread: note it, and hold new partitions still until the main thread has looked."""
        if gained and partitions and self._consumer is not None:
            self._consumer.pause(*partitions)
            for topic_partition in partitions:
                self._consumer.seek(topic_partition, 0)  # any position, so that the client does not ask for one
        if gained:
            self._gained_at = time.monotonic()  # the group answered now; who drains the note may be stopped meanwhile
        self._rebalances.append((gained, [topic_partition.partition for topic_partition in partitions]))

    def _drain_rebalances(self) -> list[int]:
        if any(gained for gained, _ in self._rebalances):
            self._contact_at = max(self._contact_at, self._gained_at)
        return super()._drain_rebalances()

    def _ask_membership(self) -> Membership:
        found = self._open_consumer.group_metadata()
        return Membership(found.member_id, found.generation_id, found.state is MemberState.STABLE, found)

    def _halt(self, numbers: Sequence[int]) -> Sequence[int]:
        assignment = self._open_consumer.assignment()
        still = [number for number in numbers if self._partition(number) in assignment]
        self._open_consumer.pause(*map(self._partition, still))
        return still

    def _bounds(self, numbers: Sequence[int]) -> Bounds | None:
        consumer = self._open_consumer
        timeout_ms = int(REQUEST_TIMEOUT_S * 1000)
        cluster = consumer._cluster  # noqa: SLF001 - of a partition without a leader the public way raises KeyError
        partitions = [
            one for one in map(self._partition, numbers) if cluster.leader_for_partition(one) not in (None, NO_LEADER)
        ]
        if len(partitions) < len(numbers):
            cluster.request_update()
        if not partitions:
            return None
        try:
            starts = consumer.beginning_offsets(partitions, timeout_ms=timeout_ms)
            ends = consumer.end_offsets(partitions, timeout_ms=timeout_ms)
        except (KafkaError, KeyError) as error:  # the latter if the leader has gone meanwhile
            log.warning("where partitions end is not known yet, asking again", error=str(error))
            return None
        return Bounds(
            {one.partition: offset for one, offset in starts.items()},
            {one.partition: offset for one, offset in ends.items()},
            self._topic_id(),
        )

    def _topic_id(self) -> str:
        return str(self._open_consumer._cluster.topic_id(self._settings.events_topic) or "")  # noqa: SLF001


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, note: Callable[[bool, Sequence[TopicPartition]], None]) -> None:
        self._note = note

    def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        self._note(True, list(assigned))

    def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        self._note(False, list(revoked))

    def on_partitions_lost(self, lost: Sequence[TopicPartition]) -> None:
        self._note(False, list(lost))
