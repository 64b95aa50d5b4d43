"""The restoring half of the transport through kafka-python."""

from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from stream_worker.connection import for_kafka_python
from stream_worker.entrance import made
from stream_worker.settings import KafkaSettings
from stream_worker.transports.base import Record
from stream_worker.transports.changelog_reader import FETCH_BYTES, FETCH_MAX_WAIT_MS, ChangelogReader
from stream_worker.transports.kafka_records import read_lightly

log = structlog.get_logger(__name__)

CONNECT_TIMEOUT_MS = 2000


def changelog_consumer_options(settings: KafkaSettings) -> dict[str, Any]:
    """The changelog consumer's settings."""
    return {
        **for_kafka_python(settings),
        "bootstrap_timeout_ms": CONNECT_TIMEOUT_MS,
        "group_id": None,
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",  # only ever applies to the start: a compacted log has no other gaps
        "isolation_level": "read_committed",
        "allow_auto_create_topics": False,
        "max_partition_fetch_bytes": FETCH_BYTES,
        "fetch_max_bytes": 4 * FETCH_BYTES,
        "fetch_max_wait_ms": FETCH_MAX_WAIT_MS,
        "reconnect_backoff_max_ms": 1000,
        "metrics_enabled": False,
    }


class KafkaPythonChangelog(ChangelogReader[KafkaConsumer]):
    """See `ChangelogReader`."""

    def _read(self, timeout_s: float, max_records: int) -> tuple[Mapping[int, Sequence[Record]], list[int]]:
        try:
            consumer = self._assign()
            batches = consumer.poll(timeout_ms=int(timeout_s * 1000), max_records=max_records)
            done = [number for number in sorted(self._numbers) if self._at_end(consumer, number)]
        except KafkaError as error:
            if not error.retriable:
                raise
            log.warning("the changelog cannot be read, trying again", error=str(error))
            return {}, []
        return {partition.partition: batch for partition, batch in batches.items()}, done

    def _end(self, client: KafkaConsumer) -> None:
        client.close()

    def _assign(self) -> KafkaConsumer:
        if self._client is None:
            self._client = made(KafkaConsumer, changelog_consumer_options(self._settings))
            read_lightly(self._client)
        partitions = {self._partition(number) for number in self._numbers}
        if self._client.assignment() != partitions:
            self._client.assign(sorted(partitions))
            self._seen |= self._numbers
        return self._client

    def _at_end(self, consumer: KafkaConsumer, number: int) -> bool:
        partition = self._partition(number)
        end = consumer.highwater(partition)
        # The public way waits where a position is not known yet, and the other partitions with it.
        state = consumer._subscription.assignment.get(partition)  # noqa: SLF001
        known = end is not None and state is not None and state.position is not None
        return known and state.position.offset >= end

    def _partition(self, number: int) -> TopicPartition:
        return TopicPartition(self._settings.state_topic, number)
