"""Records past kafka-python's `send`: the same bytes, the same partitions, and each told of once."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import IllegalStateError
from kafka.partitioner.default import murmur2
from kafka.producer.future import FutureProduceResult
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.memory_records import MemoryRecordsBuilder

from benchmarks.topics import Admin
from demo.broker import Broker
from stream_worker.transports.kafka_append import MOST_WAITING, Appender, Batch, Waiting
from stream_worker.transports.murmur2 import hashes, partitions_of
from tests.worker.process import wait_for

PLACE = TopicPartition("lists", 0)
STAMP_MS = 1_700_000_000_000


class Told:
    """What became of tokens."""

    def __init__(self) -> None:
        self.errors: dict[Any, Exception | None] = {}
        self.times = Counter[Any]()

    def settled(self, tokens: Sequence[Any], error: Exception | None) -> None:
        self.times.update(tokens)
        self.errors.update(dict.fromkeys(tokens, error))


headers = st.lists(st.tuples(st.text(max_size=5), st.binary(max_size=200)), max_size=3)
records = st.builds(
    Waiting,
    token=st.integers(),
    timestamp_ms=st.integers(STAMP_MS - 10_000, STAMP_MS + 10_000),
    key=st.none() | st.binary(max_size=100),
    value=st.none() | st.binary(max_size=10_000),
    headers=headers,
)


@given(st.lists(records, min_size=1, max_size=20), st.integers(200, 30_000))
def test_a_batch_has_the_bytes_that_the_client_writes_itself(some: list[Waiting], batch_bytes: int) -> None:
    ours = Batch(PLACE, MemoryRecordsBuilder(2, 0, batch_bytes), Told().settled)
    theirs = MemoryRecordsBuilder(2, 0, batch_bytes)
    taken = ours.extend(iter(some))
    fit = 0
    for one in some:
        if theirs.append(one.timestamp_ms, one.key, one.value, list(one.headers)) is None:
            break
        fit += 1
    assert taken == fit >= 1
    ours.records.close()
    theirs.close()
    assert ours.records.buffer() == theirs.buffer()
    assert [record.value for record in DefaultRecordBatch(bytes(ours.records.buffer()))] == [
        one.value for one in some[:taken]
    ]


def test_a_batch_goes_on_where_it_stopped_until_the_client_takes_it() -> None:
    batch = Batch(PLACE, MemoryRecordsBuilder(2, 0, 10_000), Told().settled)
    theirs = MemoryRecordsBuilder(2, 0, 10_000)
    for stamp in (STAMP_MS, STAMP_MS - 5, STAMP_MS + 7):
        assert batch.extend(iter([Waiting(0, stamp, b"k", b"v", ())] * 2)) == 2
        for _ in range(2):
            theirs.append(stamp, b"k", b"v", [])
    batch.records.close()
    theirs.close()
    assert batch.records.buffer() == theirs.buffer()
    assert batch.extend(iter([Waiting(0, STAMP_MS, b"k", b"v", ())])) == 0


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=40), st.integers(1, 7))
def test_keys_belong_where_the_client_puts_them(keys: list[bytes], count: int) -> None:
    assert hashes(keys).tolist() == [murmur2(key) for key in keys]
    partitions = [10 * number for number in range(count)]
    assert partitions_of(keys, partitions) == [partitions[(murmur2(key) & 0x7FFFFFFF) % count] for key in keys]


def test_a_key_that_is_far_too_long_costs_no_more_than_itself() -> None:
    keys = [b"k" * 100_000, *(b"u%d" % number for number in range(30))]
    assert partitions_of(keys, range(7)) == [(murmur2(key) & 0x7FFFFFFF) % 7 for key in keys]


def test_records_of_a_split_batch_are_told_of_one_by_one() -> None:
    """As the client splits it: each record's future moves to a new batch, and may move again."""
    told = Told()
    batch = Batch(PLACE, MemoryRecordsBuilder(2, 0, 10_000), told.settled)
    batch.extend(Waiting(token, STAMP_MS, b"k", b"v", ()) for token in range(4))
    first, second, again = (FutureProduceResult(PLACE) for _ in range(3))
    for index, future in enumerate((first, first, second, second)):
        batch._record_futures[index].rebind(future, index % 2)  # noqa: SLF001 - the client does
    batch._record_futures[3].rebind(again, 0)  # noqa: SLF001
    assert not told.times
    first.success((0, -1, None))
    assert told.errors == {0: None, 1: None}
    error = ValueError("too large all the same")
    again.success((-1, -1, lambda _: error))
    assert told.errors == {0: None, 1: None, 3: error}


@pytest.fixture
def topic(broker: Broker, unique: Callable[[str], str]) -> str:
    """With three partitions, which take batches of 2,000 bytes at the most."""
    topic, admin = unique("appended"), Admin(broker.bootstrap)
    admin.create([topic], {"max.message.bytes": "2000"}, partitions=3)
    admin.close()
    return topic


@pytest.fixture
def client(broker: Broker) -> Iterator[KafkaProducer]:
    """Idempotent."""
    client = KafkaProducer(bootstrap_servers=broker.bootstrap, batch_size=10_000, linger_ms=0, enable_idempotence=True)
    yield client
    client.close()


def read(broker: Broker, topic: str, count: int) -> list[Any]:
    """So many records."""
    consumer = KafkaConsumer(topic, bootstrap_servers=broker.bootstrap, auto_offset_reset="earliest")
    found: list[Any] = []

    def enough() -> bool:
        found.extend(record for batch in consumer.poll(100).values() for record in batch)
        return len(found) >= count

    wait_for(f"{count} records", enough)
    consumer.close()
    return found


def test_what_is_too_large_for_the_broker_together_arrives_in_parts(
    broker: Broker, topic: str, client: KafkaProducer
) -> None:
    told = Told()
    appender = Appender(client, told.settled)
    for number in range(40):
        key = b"u%d" % (number % 5)
        appender.append(number, topic, None, key, b"%d" % number + bytes(400), STAMP_MS + number, [("why", b"so")])
    assert not told.times, "before the push"
    appender.push()
    wait_for("all answers", lambda: len(told.times) == 40)
    assert set(told.errors.values()) == {None}
    found = read(broker, topic, 40)
    assert set(told.times.values()) == {1}
    partitions = sorted(client.partitions_for(topic))
    for record in found:
        assert record.partition == partitions_of([record.key], partitions)[0]
        assert record.headers == [("why", b"so")]
        assert record.timestamp == STAMP_MS + int(record.value.rstrip(b"\0"))
    for user in range(5):
        numbers = [int(one.value.rstrip(b"\0")) for one in found if one.key == b"u%d" % user]
        assert numbers == sorted(numbers), "those of one key keep their order"


def test_two_appenders_are_told_of_their_own(topic: str, client: KafkaProducer) -> None:
    each = {name: Told() for name in "ab"}
    appenders = {name: Appender(client, told.settled) for name, told in each.items()}
    for number in range(6):
        appenders["ab"[number % 2]].append(number, topic, 0, b"u", b"v")
        appenders["ab"[number % 2]].push()
    wait_for("all answers", lambda: len(each["a"].times) + len(each["b"].times) == 6)
    assert [sorted(told.times) for told in each.values()] == [[0, 2, 4], [1, 3, 5]]


def test_what_a_closed_client_was_given_fails(topic: str, client: KafkaProducer) -> None:
    told = Told()
    appender = Appender(client, told.settled)
    appender.append("acknowledged", topic, 0, b"u", b"v")
    appender.push()
    wait_for("the answer", lambda: bool(told.times))
    appender.append("late", topic, None, b"u", b"v")
    appender.append("without a key", topic, None, None, b"v")
    client._accumulator.close()  # noqa: SLF001 - what ending it at once does
    appender.push()
    assert told.errors["acknowledged"] is None
    for token in ("late", "without a key"):
        assert isinstance(told.errors[token], IllegalStateError)
    assert set(told.times.values()) == {1}


def test_a_push_happens_by_itself_before_too_much_waits(
    broker: Broker, unique: Callable[[str], str], client: KafkaProducer
) -> None:
    topic, told, admin = unique("appended"), Told(), Admin(broker.bootstrap)
    admin.create([topic])
    admin.close()
    appender = Appender(client, told.settled)
    for number in range(MOST_WAITING):
        appender.append(number, topic, 0, b"u", b"v")
    wait_for("all answers", lambda: len(told.times) == MOST_WAITING)
    assert set(told.errors.values()) == {None}
