"""Kafka for the commands that run beside the workers: what topics and groups hold, and records written by hand."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, Self, cast

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    GroupIdNotFoundError,
    KafkaError,
    NotCoordinatorError,
)

from stream_worker.connection import for_kafka_python
from stream_worker.entrance import away
from stream_worker.errors import DataError, TransportError
from stream_worker.settings import EventSettings
from stream_worker.topics import admin_client
from stream_worker.transports.base import Change, Record
from stream_worker.transports.kafka_append import write
from stream_worker.transports.kafka_changelog import changelog_consumer_options
from stream_worker.transports.kafka_checkpoint import checkpoint_producer_options

POLL_MS = 200
READ_RECORDS = 5000
# Without a record for so long a read is given up: twice what an open transaction of a crashed worker can hold it up.
SILENCE_S = 30.0
WRITE_TIMEOUT_S = 60.0
COORDINATOR_S = 10.0


class KafkaOffline:
    """A connection without a membership; a context manager. Its exceptions are ours, see errors.py.

    Args:
        settings: where, and the group.
    """

    def __init__(self, settings: EventSettings) -> None:
        self._settings = settings
        self._stack = ExitStack()
        self._admin: KafkaAdminClient | None = None

    def __enter__(self) -> Self:
        """Connect.

        Raises:
            TransportError: the broker does not answer.
        """
        self._admin = self._stack.enter_context(admin_client(self._settings))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        self._stack.__exit__(kind, error, trace)

    # -- topics and groups ---------------------------------------------------------------------------------------

    def partitions(self, topic: str) -> int:
        """Partitions of a topic; 0 if there is none."""
        admin = self._open_admin
        return len(admin.describe_topics([topic])[0]["partitions"]) if topic in admin.list_topics() else 0

    def name_of(self, topic_id: str) -> str | None:
        """The name of the topic with this id, or None."""
        found = [topic["name"] for topic in self._open_admin.describe_topics() if str(topic["topic_id"]) == topic_id]
        return found[0] if found else None

    def starts(self, topic: str) -> dict[int, int]:
        """The first offset retained, by partition."""
        return self._offsets(topic, OffsetSpec.EARLIEST)

    def ends(self, topic: str) -> dict[int, int]:
        """The next offset to be written, by partition; transactions that are undecided lie before it."""
        return self._offsets(topic, OffsetSpec.LATEST)

    def _offsets(self, topic: str, spec: OffsetSpec) -> dict[int, int]:
        wanted = {TopicPartition(topic, number): spec for number in range(self.partitions(topic))}
        found = self._open_admin.list_partition_offsets(wanted)
        return {partition.partition: int(found[partition].offset) for partition in sorted(found)}

    def positions(self) -> dict[int, int]:
        """Where the group stands on the events topic, by partition; absent where it has committed nothing."""
        found = self._ask_group(self._open_admin.list_group_offsets)
        topic = self._settings.events_topic
        return {one.partition: held.offset for one, held in found.items() if one.topic == topic and held.offset >= 0}

    def members(self) -> int:
        """Workers that are in the group now."""
        return len(self._ask_group(self._open_admin.describe_groups).get("members", ()))

    def _ask_group(self, question: Callable[[list[str]], Mapping[str, Any]]) -> Mapping[Any, Any]:
        """What the group's coordinator says; nothing if there is no such group."""
        group, deadline = self._settings.group, time.monotonic() + COORDINATOR_S
        while True:
            try:
                return cast(Mapping[Any, Any], question([group])[group])
            except GroupIdNotFoundError:
                return {}
            except (CoordinatorNotAvailableError, CoordinatorLoadInProgressError, NotCoordinatorError):
                if time.monotonic() > deadline:  # it takes a moment on a cluster that never had a group
                    raise
                time.sleep(0.1)

    # -- records -------------------------------------------------------------------------------------------------

    def read(self, topic: str, spans: Mapping[int, tuple[int, int]]) -> Iterator[tuple[int, Record]]:
        """Records of committed transactions, one partition after the other.

        Args:
            topic: its name.
            spans: by partition, the offset to begin with and the one to end before.

        Raises:
            TransportError: nothing came for half a minute.
        """
        consumer = KafkaConsumer(**changelog_consumer_options(self._settings))
        try:
            for number, (start, end) in spans.items():
                if start < end:
                    for record in self._read(consumer, TopicPartition(topic, number), start, end):
                        yield number, record
        finally:
            consumer.close()

    def _read(self, consumer: KafkaConsumer, partition: TopicPartition, start: int, end: int) -> Iterator[Record]:
        consumer.assign([partition])
        consumer.seek(partition, start)
        position, moved_at = start, time.monotonic()
        while position < end:
            batches = consumer.poll(timeout_ms=POLL_MS, max_records=READ_RECORDS)
            for record in batches.get(partition, ()):
                if record.offset < end:
                    yield record
            before, position = position, consumer.position(partition, timeout_ms=1000) or position
            if position > before:
                moved_at = time.monotonic()
            elif time.monotonic() - moved_at > SILENCE_S:
                raise TransportError(
                    f"{partition.topic}-{partition.partition}: nothing came after offset {position} for "
                    f"{SILENCE_S:g} s, and it ends at {end}. Is the broker well, and no transaction open?"
                )

    def write(self, topic: str, changes: Iterable[Change]) -> dict[int, int]:
        """Write records and wait until they are acknowledged. Returns the offset of the last, by partition."""
        producer = KafkaProducer(
            **for_kafka_python(self._settings),
            bootstrap_timeout_ms=int(WRITE_TIMEOUT_S * 1000),
            acks="all",
            enable_idempotence=True,
            allow_auto_create_topics=False,
        )
        try:
            sent = [
                (one.partition, producer.send(topic, one.value, one.key, partition=one.partition)) for one in changes
            ]
            return {number: int(future.get(timeout=WRITE_TIMEOUT_S).offset) for number, future in sent}
        finally:
            producer.close(timeout=WRITE_TIMEOUT_S)

    @property
    def _open_admin(self) -> KafkaAdminClient:
        assert self._admin is not None, "`with` comes first"
        return self._admin


class StateWriter:
    """Writes to the state topic in transactions, each call one; a context manager.

    Args:
        settings: where. Of two writers to one topic at once, one fails or both do.
    """

    def __init__(self, settings: EventSettings) -> None:
        self._settings = settings
        self._producer: KafkaProducer | None = None

    def __enter__(self) -> Self:
        """Connect."""
        timeout_ms = int(WRITE_TIMEOUT_S * 1000)
        patient = dict.fromkeys(
            ("transaction_timeout_ms", "max_block_ms", "delivery_timeout_ms", "request_timeout_ms"), timeout_ms
        )
        options = checkpoint_producer_options(self._settings, f"seed-{self._settings.state_topic}")
        try:
            self._producer = KafkaProducer(**{**options, **patient})
            self._producer.init_transactions()
        except KafkaError as error:
            raise away(self._settings, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        assert self._producer is not None
        with suppress(KafkaError):  # every write was waited for, or has failed with a better reason
            self._producer.close(timeout=WRITE_TIMEOUT_S if kind is None else 0)

    def write(self, changes: Iterable[Change]) -> int:
        """Write these in one transaction. Returns how many.

        Raises:
            DataError: it was not written; what is written without positions is of no use.
        """
        producer, topic = self._producer, self._settings.state_topic
        assert producer is not None
        try:
            producer.begin_transaction()
            count = write(producer, topic, changes, WRITE_TIMEOUT_S)
            producer.commit_transaction()
        except KafkaError as error:
            raise DataError(
                f"topic {topic!r}: not written ({type(error).__name__}: {error}). It is incomplete: delete it, make "
                "it with `stream-worker topics --create`, and seed again."
            ) from error
        return count
