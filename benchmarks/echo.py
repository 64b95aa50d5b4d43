"""The floor of the client: poll, then produce one record of a list's size per record. Nothing else.

The same client settings and the same duties as stream_worker/transports/kafka.py: a consumer group, an idempotent
producer, every outcome looked at, a commit a second. `python -m benchmarks.echo` is started by the benchmarks.
"""

import argparse
import signal
import sys
import time

from kafka import KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.structs import MemberState

from stream_worker.settings import Settings
from stream_worker.transports.kafka import BATCH_BYTES, FETCH_MAX_WAIT_MS

READY = "ready"
COMMIT_INTERVAL_S = 1.0
JOIN_POLL_MS, JOIN_POLLS = 500, 3


def consumer(bootstrap: str, group: str, session_timeout_s: float) -> KafkaConsumer:
    """As KafkaTransport makes it, but that it starts at the end by itself."""
    return KafkaConsumer(
        bootstrap_servers=bootstrap.split(","),
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="latest",
        isolation_level="read_committed",
        allow_auto_create_topics=False,
        partition_assignment_strategy=[CooperativeStickyAssignor],
        session_timeout_ms=int(session_timeout_s * 1000),
        heartbeat_interval_ms=int(session_timeout_s * 250),
        max_poll_interval_ms=max(60_000, int(session_timeout_s * 2000)),
        max_poll_records=_default("max_poll_records"),
        fetch_min_bytes=1,
        fetch_max_wait_ms=FETCH_MAX_WAIT_MS,
        reconnect_backoff_max_ms=1000,
    )


def producer(bootstrap: str) -> KafkaProducer:
    """As KafkaTransport makes it."""
    delivery_ms = int(_default("delivery_timeout_s") * 1000)
    return KafkaProducer(
        bootstrap_servers=bootstrap.split(","),
        acks="all",
        enable_idempotence=True,
        linger_ms=0,
        batch_size=BATCH_BYTES,
        delivery_timeout_ms=delivery_ms,
        request_timeout_ms=delivery_ms,
        max_block_ms=1000,
        reconnect_backoff_max_ms=1000,
        allow_auto_create_topics=False,
        metrics_enabled=False,
    )


class Echo:
    """Runs until `stop`."""

    def __init__(self, consumer: KafkaConsumer, producer: KafkaProducer, out: str, size: int) -> None:
        self._consumer = consumer
        self._producer = producer
        self._out = out
        self._size = size
        self._stopping = False
        self._failed = False

    def stop(self, *_: object) -> None:
        """Ask for the end."""
        self._stopping = True

    def run(self, partition: TopicPartition) -> bool:
        """Echo one partition; says on stdout when it has it. Whether all was acknowledged."""
        consumer, send, out, size = self._consumer, self._producer.send, self._out, self._size
        timeout_ms = int(_default("poll_timeout_s") * 1000)
        self._join(partition)
        position = consumer.position(partition)
        print(READY, flush=True)
        committed_at = time.monotonic()
        while not self._stopping:
            for records in consumer.poll(timeout_ms=timeout_ms).values():
                for record in records:
                    # What it answers, and blanks: a JSON object like a list, for whoever measures.
                    value = (b'{"offset":%d}' % record.offset).ljust(size)
                    send(out, value, record.key).add_errback(self._note)
                position = records[-1].offset + 1
            if time.monotonic() - committed_at >= COMMIT_INTERVAL_S:
                committed_at = time.monotonic()
                consumer.commit_async({partition: OffsetAndMetadata(position, "", -1)})
        self._producer.flush(10)
        return not self._failed

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


def _default(setting: str) -> int:
    value: int = Settings.model_fields[setting].default
    return value


def main() -> int:
    """Run until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.echo", description=__doc__)
    for name in ("--bootstrap", "--events-topic", "--out-topic", "--group"):
        parser.add_argument(name, required=True)
    parser.add_argument("--bytes", type=int, required=True, help="size of a record's value")
    parser.add_argument("--session-timeout-s", type=float, default=10)
    args = parser.parse_args()
    reader = consumer(args.bootstrap, args.group, args.session_timeout_s)
    reader.partitions_for_topic(args.events_topic)  # as the worker does before it subscribes
    reader.subscribe([args.events_topic])
    writer = producer(args.bootstrap)
    echo = Echo(reader, writer, args.out_topic, args.bytes)
    signal.signal(signal.SIGTERM, echo.stop)
    try:
        return 0 if echo.run(TopicPartition(args.events_topic, 0)) else 1
    finally:
        writer.close(timeout=5)
        reader.close(autocommit=False)


if __name__ == "__main__":
    sys.exit(main())
