"""Records into kafka-python's producer, many at once, for a fraction of what its `send` costs each.

`send` looks up topic and partition, estimates sizes, formats what it might log, makes a future and wakes the client's
thread, for each record; the thread then fights for the GIL with whoever sends the next one, and completes future after
future. Underneath are batches of records in the format of the wire (Kafka's message format v2), which the thread takes,
sends, and answers as a whole: here they are filled, and what becomes of one is told once. All of that is private, hence
kafka-python below 3.1; `tests/worker/test_kafka_append.py`, `test_transport_contract.py` and the crash tests hold what
is built on it.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from kafka import KafkaProducer, TopicPartition
from kafka.errors import IllegalStateError, KafkaTimeoutError, UnknownTopicOrPartitionError
from kafka.producer.producer_batch import ProducerBatch
from kafka.record.memory_records import MemoryRecordsBuilder
from kafka.record.util import encode_varint

from stream_worker.transports.base import Change
from stream_worker.transports.murmur2 import partitions_of

ATTRIBUTES = b"\0"  # of a record; there are none yet
NULL = b"\1"  # the length of what is absent: -1, zigzag
LARGE = 2**18  # bytes of a value from which on the client is asked whether it is too large
MOST_WAITING = 1000  # records before a push happens by itself

Settled = Callable[[Sequence[Any], Exception | None], None]


class Waiting(NamedTuple):
    """A record that was appended and is in no batch yet."""

    token: Any
    timestamp_ms: int | None
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


class Appender:
    """Appends records to a producer; nothing is on its way before `push`.

    Args:
        client: a producer. One that is transactional needs an appender for each transaction.
        settled: called with tokens, and an error or None, once for each record, on the client's thread or by a push.
            What failed may be in the log all the same.
    """

    def __init__(self, client: KafkaProducer, settled: Settled) -> None:
        self._client = client
        self._settled = settled
        self._topics: set[str] = set()  # that the client knows
        self._places: dict[tuple[str, int], TopicPartition] = {}
        self._by_key: dict[str, list[Waiting]] = defaultdict(list)  # by topic
        self._by_place: dict[TopicPartition, list[Waiting]] = defaultdict(list)
        self._count = 0

    def append(
        self,
        token: Any,
        topic: str,
        partition: int | None,
        key: bytes | None,
        value: bytes | None,
        timestamp_ms: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        """One more record.

        Args:
            token: comes back when it is settled.
            topic, key, value, headers: of the record.
            partition: None for that of the key, as the client does it.
            timestamp_ms: None for now.

        Raises:
            KafkaError: the client does not take it; its token will not be told of.
        """
        client = self._client
        if value is not None and len(value) > LARGE:
            client._ensure_valid_record_size(client._estimate_size_in_bytes(key, value, list(headers)))
        if topic not in self._topics:
            if client._metadata.partitions_for_topic(topic) is None:
                client._wait_on_metadata(topic, client.config["max_block_ms"])
            self._topics.add(topic)
        record = Waiting(token, timestamp_ms, key, value, headers)
        if partition is None and key is None:
            partition = client._partition(topic, None, key, value, key, value)
            if partition is None:
                raise UnknownTopicOrPartitionError(topic)
        if partition is None:
            self._by_key[topic].append(record)
        else:
            self._by_place[self._place(topic, partition)].append(record)
        self._count += 1
        if self._count >= MOST_WAITING:
            self.push()

    def push(self) -> None:
        """What was appended is on its way."""
        if not self._count:
            return
        self._count = 0
        self._topics.clear()  # a topic may go, or grow
        self._assign()
        accumulator = self._client._accumulator
        accumulator._appends_in_progress.increment()
        try:
            for place, records in self._by_place.items():
                with accumulator._tp_lock(place):
                    closed = accumulator._closed
                    if not closed:
                        self._fill(place, records)
                if closed:
                    self._settled([one.token for one in records], IllegalStateError("the producer is closed"))
        finally:
            accumulator._appends_in_progress.decrement()
        self._by_place.clear()
        self._client._sender.wakeup()

    def _assign(self) -> None:
        """The records without a partition to that of their key."""
        for topic, records in self._by_key.items():
            partitions = sorted(self._client._metadata.partitions_for_topic(topic) or ())
            if not partitions:
                self._settled([one.token for one in records], UnknownTopicOrPartitionError(topic))
                continue
            keys = [one.key for one in records if one.key is not None]
            for partition, record in zip(partitions_of(keys, partitions), records, strict=True):
                self._by_place[self._place(topic, partition)].append(record)
        self._by_key.clear()

    def _place(self, topic: str, partition: int) -> TopicPartition:
        place = self._places.get((topic, partition))
        if place is None:
            place = self._places[topic, partition] = TopicPartition(topic, partition)
            manager = self._client._transaction_manager
            if manager is not None and manager.is_transactional():
                manager.maybe_add_partition_to_transaction(place)
        return place

    def _fill(self, place: TopicPartition, records: Sequence[Waiting]) -> None:
        """Into the batches of this partition, whose lock is held."""
        accumulator = self._client._accumulator
        batches = accumulator._batches[place]
        batch = batches[-1] if batches and isinstance(batches[-1], Batch) else None
        if batch is not None and batch.settled != self._settled:
            batch = None  # another appender's
        start = 0
        while start < len(records):
            taken = 0 if batch is None else batch.extend(islice(records, start, None))
            start += taken
            if start < len(records):
                config = accumulator.config
                builder = MemoryRecordsBuilder(
                    config["message_version"], config["compression_attrs"], config["batch_size"]
                )
                batch = Batch(place, builder, self._settled)
                batches.append(batch)
                accumulator._incomplete.add(batch)


class Batch(ProducerBatch):  # type: ignore[misc]
    """A batch whose records are told of together."""

    def __init__(self, place: TopicPartition, records: MemoryRecordsBuilder, settled: Settled) -> None:
        self._tokens: list[Any] = []
        self.settled = settled
        self._alone: list[Alone] = []
        super().__init__(place, records)
        _tell(self.produce_future, self._tokens, settled)

    def extend(self, records: Iterator[Waiting]) -> int:
        """Take as many of these as fit, of an empty batch at least one. Returns how many."""
        if self.records._closed:  # the client's thread has it already
            return 0
        before = len(self._tokens)
        builder = self.records._builder
        buffer, most, now_ms = builder._buffer, builder._batch_size, int(time.time() * 1000)
        for offset, (token, timestamp_ms, key, value, headers) in enumerate(records, before):
            if timestamp_ms is None:
                timestamp_ms = now_ms
            if not offset:
                builder._first_timestamp = builder._max_timestamp = timestamp_ms
            record = encode_record(offset, timestamp_ms - builder._first_timestamp, key, value, headers)
            if offset and len(buffer) + len(record) > most:
                break
            buffer += record
            if timestamp_ms > builder._max_timestamp:
                builder._max_timestamp = timestamp_ms
            self._tokens.append(token)
        self.records._next_offset = builder._num_records = len(self._tokens)
        builder._last_offset = len(self._tokens) - 1
        return len(self._tokens) - before

    @property
    def _record_futures(self) -> "list[Alone]":
        """What the client asks for when it splits a batch that is too large for the broker."""
        if not self._alone:
            self._alone = [Alone(token, self.settled) for token in self._tokens]
        return self._alone

    @_record_futures.setter
    def _record_futures(self, futures: Sequence[object]) -> None:
        assert not futures, "there are none of a new batch"


def encode_record(
    offset: int, after_ms: int, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]]
) -> bytes:
    """A record of a batch in message format v2 (https://kafka.apache.org/documentation/#record).

    Args:
        offset: its place in the batch.
        after_ms: its timestamp less that of the first one.
        key, value, headers: of the record.
    """
    key_size, value_size = NULL if key is None else varint(len(key)), NULL if value is None else varint(len(value))
    parts = [ATTRIBUTES, varint(after_ms), varint(offset), key_size, key or b"", value_size, value or b""]
    parts.append(varint(len(headers)))
    for name, text in headers:
        encoded = name.encode()
        parts += (varint(len(encoded)), encoded, varint(len(text)), text)
    body = b"".join(parts)
    return varint(len(body)) + body


def varint(value: int) -> bytes:
    """Zigzag and base 128, as in Protocol Buffers."""
    if 0 <= value < len(VARINTS):
        return VARINTS[value]
    encoded = bytearray()
    encode_varint(value, encoded.append)
    return bytes(encoded)


VARINTS: list[bytes] = []
VARINTS += [varint(value) for value in range(2**13)]  # what needs two bytes at the most


class Alone:
    """A record of a batch that was split."""

    def __init__(self, token: Any, settled: Settled) -> None:
        self._token = token
        self._settled = settled

    def rebind(self, future: Any, _index: int) -> None:
        """It is in another batch now, whose future this is."""
        _tell(future, [self._token], self._settled)


def _tell(future: Any, tokens: Sequence[Any], settled: Settled) -> None:
    """Settle these when the batch whose future this is has been answered: (offset, time, None or an error of each)."""
    future._add_cb_eb(
        lambda result: settled(tokens, None if result[2] is None else result[2](0)),
        lambda error: settled(tokens, error),
    )


def write(client: KafkaProducer, topic: str, changes: Iterable[Change], timeout_s: float) -> int:
    """Append these, in a transaction that has begun, and wait until all are acknowledged. Returns how many.

    All of them: a batch that expired would leave the transaction open to a commit without it.

    Raises:
        KafkaError: one was not acknowledged in this time.
    """
    deadline = time.monotonic() + timeout_s
    tally = Tally()
    records = Appender(client, tally.settled)
    count = 0
    for one in changes:
        records.append(None, topic, one.partition, one.key, one.value)
        count += 1
    records.push()
    tally.wait(count, max(0.0, deadline - time.monotonic()))
    return count


class Tally:
    """Counts records that are settled."""

    def __init__(self) -> None:
        self._count = 0
        self._error: Exception | None = None
        self._changed = threading.Condition()

    def settled(self, tokens: Sequence[Any], error: Exception | None) -> None:
        """See `Appender`."""
        with self._changed:
            self._count += len(tokens)
            self._error = self._error or error
            self._changed.notify_all()

    def wait(self, count: int, timeout_s: float) -> None:
        """Until so many are acknowledged.

        Raises:
            KafkaError: one failed, or the time is over.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._error or self._count >= count, timeout_s):
                raise KafkaTimeoutError(f"{count - self._count} records are not acknowledged after {timeout_s:.1f} s")
        if self._error is not None:
            raise self._error
