"""What the client costs as it comes: poll, then produce one record of a list's size per record. Nothing else.

The same client settings and the same duties as the worker's transports: a consumer group, an idempotent producer,
every outcome looked at, a commit a second. `python -m benchmarks.echo` is started by the benchmarks.
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import confluent_kafka
from kafka import KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.structs import MemberState

from benchmarks.ready import READY
from stream_worker.settings import Settings
from stream_worker.transports import kafka_producer, librdkafka, librdkafka_producer
from stream_worker.transports.kafka import consumer_options
from stream_worker.transports.librdkafka_record import take

COMMIT_INTERVAL_S = 1.0
JOIN_POLL_MS, JOIN_POLLS = 500, 3
JOIN_TIMEOUT_S = 5.0


def answer(offset: int, size: int) -> bytes:
    """What it answers, and blanks: a JSON object like a list, for whoever measures."""
    return (b'{"offset":%d}' % offset).ljust(size)


class Echo(Protocol):
    """Runs until `stop`."""

    def stop(self, *_: object) -> None:
        """Ask for the end."""

    def run(self, partition: TopicPartition) -> bool:
        """Echo one partition; says on stdout when it has it. Whether all was acknowledged."""

    def close(self) -> None:
        """Leave."""


class KafkaPythonEcho:
    """See `Echo`."""

    def __init__(self, settings: Settings, out: str, size: int) -> None:
        options = consumer_options(settings) | {"auto_offset_reset": "latest"}  # it starts at the end by itself
        self._consumer = KafkaConsumer(**options)
        self._producer = KafkaProducer(**kafka_producer.producer_options(settings))
        self._poll_timeout_s = settings.poll_timeout_s
        self._consumer.partitions_for_topic(settings.events_topic)  # as the worker does before it subscribes
        self._consumer.subscribe([settings.events_topic])
        self._out = out
        self._size = size
        self._stopping = False
        self._failed = False

    def stop(self, *_: object) -> None:
        """See `Echo`."""
        self._stopping = True

    def run(self, partition: TopicPartition) -> bool:
        """See `Echo`."""
        consumer, send, out, size = self._consumer, self._producer.send, self._out, self._size
        timeout_ms = int(self._poll_timeout_s * 1000)
        self._join(partition)
        position = consumer.position(partition)
        print(READY, flush=True)
        committed_at = time.monotonic()
        while not self._stopping:
            for records in consumer.poll(timeout_ms=timeout_ms).values():
                for record in records:
                    send(out, answer(record.offset, size), record.key).add_errback(self._note)
                position = records[-1].offset + 1
            if time.monotonic() - committed_at >= COMMIT_INTERVAL_S:
                committed_at = time.monotonic()
                consumer.commit_async({partition: OffsetAndMetadata(position, "", -1)})
        self._producer.flush(10)
        return not self._failed

    def close(self) -> None:
        """See `Echo`."""
        self._producer.close(timeout=5)
        self._consumer.close(autocommit=False)

    def _join(self, partition: TopicPartition) -> None:
        """Join the group by long polls, and stay for a second rebalance that may follow.

        kafka-python 3.0.12 never notices the end of a rebalance which new metadata began if a short poll gave up on it
        half-way: commits are refused and heartbeats stop, for ever.
        """
        quiet = 0
        while quiet < JOIN_POLLS and not self._stopping:
            self._consumer.poll(timeout_ms=JOIN_POLL_MS)
            stable = self._consumer.group_metadata().state is MemberState.STABLE
            quiet = quiet + 1 if stable and partition in self._consumer.assignment() else 0

    def _note(self, _error: object) -> None:
        self._failed = True


class LibrdkafkaEcho:
    """See `Echo`."""

    def __init__(self, settings: Settings, out: str, size: int) -> None:
        self._consumer = confluent_kafka.Consumer(librdkafka.consumer_options(settings))
        self._producer = confluent_kafka.Producer(librdkafka_producer.producer_options(settings))
        self._poll_timeout_s = settings.poll_timeout_s
        self._most = settings.max_poll_records
        self._consumer.subscribe([settings.events_topic], on_assign=self._on_assign)
        self._out = out
        self._size = size
        self._stopping = False
        self._failed = False

    def stop(self, *_: object) -> None:
        """See `Echo`."""
        self._stopping = True

    def run(self, partition: TopicPartition) -> bool:
        """See `Echo`."""
        consumer, producer, out, size = self._consumer, self._producer, self._out, self._size
        place = confluent_kafka.TopicPartition(*partition)
        records: list[Any] = []
        while not self._stopping and place not in consumer.assignment():
            records += take(consumer, self._most, self._poll_timeout_s)
        print(READY, flush=True)
        committed_at = time.monotonic()
        while not self._stopping:
            records += take(consumer, self._most, self._poll_timeout_s)
            for record in records:
                producer.produce(out, answer(record.offset(), size), record.key(), on_delivery=self._note)
                place.offset = record.offset() + 1
            records.clear()
            producer.poll(0)
            if place.offset >= 0 and time.monotonic() - committed_at >= COMMIT_INTERVAL_S:
                committed_at = time.monotonic()
                consumer.commit(offsets=[place], asynchronous=True)
        return producer.flush(10) == 0 and not self._failed

    def close(self) -> None:
        """See `Echo`."""
        self._consumer.close()

    def _on_assign(self, consumer: confluent_kafka.Consumer, partitions: list[confluent_kafka.TopicPartition]) -> None:
        for one in partitions:  # the end as of now: "latest" would be looked up at some later moment
            one.offset = consumer.get_watermark_offsets(one, JOIN_TIMEOUT_S)[1]
        consumer.incremental_assign(partitions)

    def _note(self, error: object, _message: object) -> None:
        self._failed = self._failed or error is not None


ECHOES: dict[str, Callable[[Settings, str, int], Echo]] = {
    "kafka-python": KafkaPythonEcho,
    "librdkafka": LibrdkafkaEcho,
}


def main() -> int:
    """Run until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.echo", description=__doc__)
    for name in ("--bootstrap", "--events-topic", "--out-topic", "--group"):
        parser.add_argument(name, required=True)
    parser.add_argument("--client", choices=ECHOES, default="kafka-python")
    parser.add_argument("--bytes", type=int, required=True, help="size of a record's value")
    parser.add_argument("--session-timeout-s", type=float, default=10)
    args = parser.parse_args()
    settings = Settings(
        bundle=Path(),  # it serves no model
        bootstrap=args.bootstrap,
        events_topic=args.events_topic,
        group=args.group,
        session_timeout_s=args.session_timeout_s,
    )
    echo = ECHOES[args.client](settings, args.out_topic, args.bytes)
    signal.signal(signal.SIGTERM, echo.stop)
    try:
        return 0 if echo.run(TopicPartition(args.events_topic, 0)) else 1
    finally:
        echo.close()


if __name__ == "__main__":
    sys.exit(main())
