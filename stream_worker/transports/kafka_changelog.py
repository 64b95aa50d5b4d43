"""The restoring half of the Kafka transport: reads the changelog of partitions that were assigned, to its end."""

from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from stream_worker.settings import KafkaSettings
from stream_worker.transports.base import Record

log = structlog.get_logger(__name__)

FETCH_BYTES = 8 * 1024 * 1024
POSITION_TIMEOUT_MS = 1000
CONNECT_TIMEOUT_MS = 2000


def changelog_consumer_options(settings: KafkaSettings) -> dict[str, Any]:
    """The changelog consumer's settings."""
    return {
        "bootstrap_servers": settings.bootstrap.split(","),
        "bootstrap_timeout_ms": CONNECT_TIMEOUT_MS,
        "group_id": None,
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",  # only ever applies to the start: a compacted log has no other gaps
        "isolation_level": "read_committed",
        "allow_auto_create_topics": False,
        "max_partition_fetch_bytes": FETCH_BYTES,
        "fetch_max_bytes": 4 * FETCH_BYTES,
        "fetch_max_wait_ms": 100,
        "reconnect_backoff_max_ms": 1000,
        "metrics_enabled": False,
    }


class ChangelogReader:
    """Reads the partitions it was given, each until its end.

    The end is the high watermark as of a fetch after the assignment: while a transaction of an owner before us is
    undecided, a read_committed position stays below it, so that nothing is missed.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._consumer: KafkaConsumer | None = None
        self._numbers: set[int] = set()
        self._seen: set[int] = set()  # all that this consumer was ever assigned

    def __len__(self) -> int:
        """Partitions that are being read."""
        return len(self._numbers)

    def start(self, numbers: Sequence[int]) -> None:
        """Read these from the start."""
        if self._seen & set(numbers):
            # A fetch of before may still be buffered, with a high watermark that is no longer true: read all anew.
            self.close()
        self._numbers |= set(numbers)

    def stop(self, numbers: Sequence[int]) -> None:
        """They are no longer ours."""
        self._numbers -= set(numbers)

    def poll(self, timeout_s: float, max_records: int) -> tuple[Mapping[int, Sequence[Record]], list[int]]:
        """Records by partition, and the partitions that are read to their end."""
        if not self._numbers:
            self.close()
            return {}, []
        try:
            consumer = self._assign()
            batches = consumer.poll(timeout_ms=int(timeout_s * 1000), max_records=max_records)
            done = [number for number in sorted(self._numbers) if self._at_end(consumer, number)]
        except KafkaError as error:
            if not error.retriable:
                raise
            log.warning("the changelog cannot be read, trying again", error=str(error))
            return {}, []
        self._numbers -= set(done)
        return {partition.partition: batch for partition, batch in batches.items()}, done

    def close(self) -> None:
        """Give it back."""
        if self._consumer is not None:
            self._consumer.close()
        self._consumer = None
        self._seen = set()

    def _assign(self) -> KafkaConsumer:
        if self._consumer is None:
            self._consumer = KafkaConsumer(**changelog_consumer_options(self._settings))
        partitions = {self._partition(number) for number in self._numbers}
        if self._consumer.assignment() != partitions:
            self._consumer.assign(sorted(partitions))
            self._seen |= self._numbers
        return self._consumer

    def _at_end(self, consumer: KafkaConsumer, number: int) -> bool:
        partition = self._partition(number)
        end = consumer.highwater(partition)
        return end is not None and consumer.position(partition, timeout_ms=POSITION_TIMEOUT_MS) >= end

    def _partition(self, number: int) -> TopicPartition:
        return TopicPartition(self._settings.state_topic, number)
