"""What is read past kafka-python's own records is what it would have read."""

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder

from benchmarks.topics import Admin
from demo.broker import Broker
from stream_worker.transports.kafka_records import Fetched, read_lightly, records_of
from stream_worker.transports.kafka_records import _PartitionRecords as PartitionRecords
from tests.worker.process import wait_for

PLACE = TopicPartition("events", 0)
LZ4 = 3
Record = tuple[int, bytes | None, bytes | None, list[tuple[str, bytes | None]]]

headers = st.lists(st.tuples(st.text(max_size=5), st.none() | st.binary(max_size=80)), max_size=3)
records = st.tuples(
    st.integers(0, 2**40), st.none() | st.binary(max_size=100), st.none() | st.binary(max_size=20_000), headers
)


def built(some: list[Record], magic: int = 2, compression: int = 0, first: int = 0) -> bytes:
    """These records as a batch."""
    builder = MemoryRecordsBuilder(magic, compression, 2**30, offset=first)
    for timestamp, key, value, each in some:
        assert builder.append(timestamp, key, value, each) is not None
    builder.close()
    return bytes(builder.buffer())


def marker(first: int, epoch: int) -> bytes:
    """What ends a transaction."""

    class Marker(DefaultRecordBatchBuilder):  # type: ignore[misc]
        def _get_attributes(self, include_compression_type: bool = True) -> int:
            return int(self.CONTROL_MASK | self.TRANSACTIONAL_MASK)

    builder = Marker(2, 0, False, 7, 0, 0, 1000)
    builder.append(0, 5, struct.pack(">hh", 0, 1), bytes(6), [])
    return led(bytes(builder.build()), first, epoch)


def led(batch: bytes, first: int, epoch: int) -> bytes:
    """The batch as a leader of that epoch wrote it, from that offset on."""
    return struct.pack(">q", first) + batch[8:12] + struct.pack(">i", epoch) + batch[16:]


def light(one: Any) -> Fetched:
    return Fetched(one.offset, one.timestamp, one.key, one.value)


@given(st.lists(records, max_size=5), st.lists(records, max_size=5), st.sampled_from([0, LZ4]), st.integers(0, 7))
def test_the_same_records_as_the_clients(first: list[Record], second: list[Record], codec: int, begin: int) -> None:
    """Batch after batch, from an offset in the midst of them."""
    data = built(first, compression=codec) + built(second, compression=codec, first=len(first))
    ours = PartitionRecords(begin, PLACE, MemoryRecords(data))
    theirs = Fetcher.PartitionRecords(begin, PLACE, MemoryRecords(data))
    for most in (1, 3, 100):
        assert ours.take(most) == [light(one) for one in theirs.take(most)]
        assert ours.next_fetch_offset == theirs.next_fetch_offset
        assert ours.leader_epoch == theirs.leader_epoch
        if not ours:
            break
    assert bool(ours) == bool(theirs)


def test_a_marker_moves_offset_and_epoch() -> None:
    """A position with an old epoch looks to the broker like one on a log that was cut off."""
    data = led(built([(5, b"u", b"a", [])]), 0, 1) + marker(1, 2)
    ours, theirs = (one(0, PLACE, MemoryRecords(data)) for one in (PartitionRecords, Fetcher.PartitionRecords))
    assert ours.take() == [light(one) for one in theirs.take()]
    assert (ours.next_fetch_offset, ours.leader_epoch) == (theirs.next_fetch_offset, theirs.leader_epoch) == (2, 2)


@pytest.mark.parametrize("magic", [0, 1])
def test_batches_of_old_brokers(magic: int) -> None:
    stamp = 0 if magic == 0 else 5
    data = built([(stamp, b"u1", b"a", []), (stamp, None, None, [])], magic=magic)
    theirs = Fetcher.PartitionRecords(0, PLACE, MemoryRecords(data)).take()
    assert PartitionRecords(0, PLACE, MemoryRecords(data)).take() == [light(one) for one in theirs]


def test_the_time_of_the_log_where_it_keeps_that() -> None:
    class Appended(DefaultRecordBatch):  # type: ignore[misc]
        timestamp_type = DefaultRecordBatch.LOG_APPEND_TIME
        max_timestamp = 77

    data = built([(5, b"u", b"a", []), (6, b"u", b"b", [])])
    assert [record.timestamp for record in records_of(Appended(data))] == [77, 77]


@given(st.data())
def test_damage_is_told(data: st.DataObject) -> None:
    """By the checksum, or else by the lengths; and never by reading something else in silence."""
    whole = built([(1, b"u%d" % number, b"value", [("h", b"x")]) for number in range(4)])
    place = data.draw(st.integers(DefaultRecordBatch.HEADER_STRUCT.size, len(whole) - 1))
    broken = bytearray(whole)
    broken[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CorruptRecordError):
        PartitionRecords(0, PLACE, MemoryRecords(bytes(broken))).take()
    with pytest.raises(CorruptRecordError):
        list(records_of(DefaultRecordBatch(whole[: data.draw(st.integers(62, len(whole) - 1))])))


def test_aborted_transactions_are_passed_over(broker: Broker, unique: Callable[[str], str]) -> None:
    topic, admin = unique("records"), Admin(broker.bootstrap)
    admin.create([topic])
    admin.close()
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id=unique("writer"))
    producer.init_transactions()
    for number in range(6):
        producer.begin_transaction()
        producer.send(topic, b"%d" % number, b"k", partition=0).get(30)
        if number % 3:
            producer.abort_transaction()
        else:
            producer.commit_transaction()
    producer.close()
    found: dict[bool, list[bytes | None]] = {}
    for committed in (True, False):
        consumer = KafkaConsumer(
            bootstrap_servers=broker.bootstrap,
            isolation_level="read_committed" if committed else "read_uncommitted",
            auto_offset_reset="earliest",
        )
        read_lightly(consumer)
        place = TopicPartition(topic, 0)
        consumer.assign([place])
        values = found[committed] = []

        def at_end(consumer: KafkaConsumer = consumer, place: Any = place, values: Any = values) -> bool:
            values.extend(record.value for batch in consumer.poll(100).values() for record in batch)
            return bool(consumer.highwater(place) and consumer.position(place) == consumer.highwater(place))

        wait_for("the end", at_end)
        consumer.close()
    assert found == {True: [b"0", b"3"], False: [b"%d" % number for number in range(6)]}
