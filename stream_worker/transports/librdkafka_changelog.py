"""The restoring half of the transport through librdkafka."""

from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from stream_worker.settings import Settings
from stream_worker.transports.base import Record
from stream_worker.transports.changelog_reader import FETCH_BYTES, FETCH_MAX_WAIT_MS, ChangelogReader
from stream_worker.transports.librdkafka_client import cause, client_options, fields
from stream_worker.transports.librdkafka_record import ClientRecord, take

log = structlog.get_logger(__name__)


def changelog_consumer_options(settings: Settings) -> dict[str, Any]:
    """The changelog consumer's settings."""
    return client_options(
        settings,
        group_id=settings.group,  # the client insists on one; it never joins it
        enable_auto_commit=False,
        enable_auto_offset_store=False,
        auto_offset_reset="earliest",  # only ever applies to the start: a compacted log has no other gaps
        isolation_level="read_committed",
        enable_partition_eof=True,
        max_partition_fetch_bytes=FETCH_BYTES,
        fetch_max_bytes=4 * FETCH_BYTES,
        fetch_wait_max_ms=FETCH_MAX_WAIT_MS,
        fetch_queue_backoff_ms=10,
    )


class LibrdkafkaChangelog(ChangelogReader[Consumer]):
    """See `ChangelogReader`.

    The client tells when a read_committed position meets the end of what is decided; it is the end of the partition if
    the high watermark of the same fetch is no further.
    """

    _assigned: frozenset[int] = frozenset()

    def _read(self, timeout_s: float, max_records: int) -> tuple[Mapping[int, Sequence[Record]], list[int]]:
        records: dict[int, list[ClientRecord]] = {}
        done = []
        try:
            consumer = self._assign()
            for message in take(consumer, max_records, timeout_s):
                error, number = message.error(), message.partition()
                if number not in self._numbers:
                    continue
                if error is None:
                    records.setdefault(number, []).append(ClientRecord.of(message))
                elif error.code() != KafkaError._PARTITION_EOF:
                    log.warning("the changelog cannot be read, trying again", **fields(message))
                elif (message.offset() or 0) >= self._high_watermark(consumer, number):
                    done.append(number)
        except KafkaException as error:
            log.warning("the changelog cannot be read, trying again", error=cause(error).str())
        return records, done

    def _end(self, client: Consumer) -> None:
        client.close()
        self._assigned = frozenset()

    def _assign(self) -> Consumer:
        if self._client is None:
            self._client = Consumer(changelog_consumer_options(self._settings))
        topic = self._settings.state_topic
        new, old = self._numbers - self._assigned, self._assigned - self._numbers
        if old:
            self._client.incremental_unassign([TopicPartition(topic, number) for number in old])
        if new:
            self._client.incremental_assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in new])
        self._assigned = frozenset(self._numbers)
        self._seen |= self._numbers
        return self._client

    def _high_watermark(self, consumer: Consumer, number: int) -> int:
        return consumer.get_watermark_offsets(TopicPartition(self._settings.state_topic, number), cached=True)[1]
