"""Records out of kafka-python's consumer for less than half of what its own reading costs each.

The client makes two objects of thirteen and seven fields for each record, headers and all; we want four. What it does
for a batch (checksum, decompression, aborted transactions, where to go on) is done here by its own means. Private, as
in kafka_append.py: `tests/worker/test_kafka_records.py` holds it to what the client reads.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import Fetcher, IsolationLevel
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.memory_records import MemoryRecords
from kafka.record.util import decode_varint


class Fetched(NamedTuple):
    """A record, see `Record`."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


def read_lightly(consumer: KafkaConsumer) -> None:
    """Have this consumer's polls give `Fetched` records."""
    consumer._fetcher.PartitionRecords = _PartitionRecords  # noqa: SLF001 - there is no public way


class _PartitionRecords(Fetcher.PartitionRecords):  # type: ignore[misc]
    """Those of one fetch of one partition."""

    def _unpack_records(
        self, tp: TopicPartition, records: MemoryRecords, key_deserializer: None, value_deserializer: None
    ) -> Iterator[Fetched]:
        """The client's own, but for what a record is."""
        last: Any = None
        while (batch := records.next_batch()) is not None:
            last = batch
            if self.check_crcs and not batch.validate_crc():
                raise CorruptRecordError(f"{tp}: the batch at offset {batch.base_offset} fails its checksum")
            each: Iterator[Fetched]
            if batch.magic < 2:  # written before Kafka 0.11
                each = (Fetched(one.offset, one.timestamp, one.key, one.value) for one in batch)
            else:
                self.leader_epoch = batch.leader_epoch
                self.bytes_read += batch.size_in_bytes  # whoever was read from goes behind the others
                if self._is_skipped(batch):
                    self.next_fetch_offset = batch.next_offset
                    continue
                each = records_of(batch)
            for record in each:
                self.next_fetch_offset = record.offset + 1
                yield record
        if last is not None and last.magic == 2:
            self.next_fetch_offset = last.next_offset  # compaction may have taken the last records
        self.drain()

    def _is_skipped(self, batch: DefaultRecordBatch) -> bool:
        """Whether it is a marker, or of a transaction that was aborted (KIP-98)."""
        if self.isolation_level == IsolationLevel.READ_COMMITTED and batch.has_producer_id():
            self._consume_aborted_transactions_up_to(batch.last_offset)
            if self._contains_abort_marker(batch):
                self.aborted_producer_ids.discard(batch.producer_id)
            elif self._is_batch_aborted(batch):
                return True
        return bool(batch.is_control_batch)


def records_of(batch: DefaultRecordBatch) -> Iterator[Fetched]:
    """The records of a batch of message format v2 (https://kafka.apache.org/documentation/#record).

    Raises:
        CorruptRecordError: it is none.
    """
    batch._maybe_uncompress()  # noqa: SLF001
    data, place = bytes(batch._buffer), batch._pos  # noqa: SLF001
    base, first_ms = batch.base_offset, batch.first_timestamp
    appended_ms = batch.max_timestamp if batch.timestamp_type == batch.LOG_APPEND_TIME else None
    key: bytes | None
    value: bytes | None
    try:
        for _ in range(batch.records_count):
            size, place = decode_varint(data, place)
            end = place + size
            after_ms, place = decode_varint(data, place + 1)  # behind the attributes
            after, place = decode_varint(data, place)
            size, place = decode_varint(data, place)
            if size < 0:
                key = None
            else:
                key = data[place : place + size]
                place += size
            size, place = decode_varint(data, place)
            value = None if size < 0 else data[place : place + size]
            if place + size >= end:  # there is at least the number of headers
                raise IndexError("longer than it says")
            place = end
            yield Fetched(base + after, first_ms + after_ms if appended_ms is None else appended_ms, key, value)
        if place != len(data):
            raise IndexError(f"{len(data) - place} bytes too many")
    except (IndexError, ValueError) as error:
        raise CorruptRecordError(f"the batch at offset {base} cannot be read: {error}") from error
