"""The stream: events go out at a steady rate, lists come in, and once a second somebody looks."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from demo.children import Stop, Stopped
from demo.latency import Ledger
from demo.model import Event
from demo.pacing import Pace
from stream_worker.errors import TransportError
from stream_worker.messages import decode_list

LINE_S = 1.0
POLL_MS = 100  # the reader's longest wait; what arrives wakes it at once
FLUSH_S = 5.0
LAST_LISTS_S = 3.0


class Sender:
    """Events to Kafka, keyed by user, without waiting for each."""

    def __init__(self, producer: Any, topic: str, ledger: Ledger) -> None:
        self._producer = producer
        self._topic = topic
        self._ledger = ledger
        self.failed = 0

    def send(self, event: Event) -> None:
        """Hand one event to the client.

        Raises:
            TransportError: the broker is away for longer than the client can buffer.
        """
        user, value = event
        self._ledger.sent(user, time.monotonic())
        try:
            self._producer.send(self._topic, key=user.encode(), value=value).add_errback(self._fail)
        except KafkaError as error:
            raise TransportError(f"events cannot be sent: {error}. Is the broker running?") from error

    def flush(self) -> None:
        """Wait until all is acknowledged, or for a few seconds."""
        with suppress(KafkaError):
            self._producer.flush(timeout=FLUSH_S)

    def _fail(self, _error: BaseException) -> None:
        self.failed += 1


class Reader(threading.Thread):
    """Reads every list as it is published, as an application would."""

    def __init__(self, consumer: Any, ledger: Ledger) -> None:
        super().__init__(name="reader", daemon=True)
        self._consumer = consumer
        self._ledger = ledger
        self._done = threading.Event()
        self.problem: Exception | None = None

    def run(self) -> None:
        """Until `stop`."""
        try:
            while not self._done.is_set():
                for records in self._consumer.poll(timeout_ms=POLL_MS).values():
                    now = time.monotonic()
                    for record in records:
                        if record.value is not None:  # None deletes a user's list
                            self._ledger.read(decode_list(record.value), now)
        except Exception as error:  # shown by the main thread, which would else see a stream without lists
            self.problem = error

    def stop(self) -> None:
        """End the thread; the consumer is the caller's again."""
        self._done.set()
        self.join()


@contextmanager
def opened(bootstrap: str, events: str, recommendations: str, ledger: Ledger) -> Iterator[tuple[Sender, Reader]]:
    """A sender, and a reader that sees every list from now on.

    Raises:
        TransportError: the broker does not answer.
    """
    servers = bootstrap.split(",")
    try:
        consumer = KafkaConsumer(
            bootstrap_servers=servers, group_id=None, auto_offset_reset="latest", fetch_max_wait_ms=500
        )
        producer = KafkaProducer(
            bootstrap_servers=servers, acks="all", enable_idempotence=True, linger_ms=0, batch_size=65536,
            max_block_ms=5000, reconnect_backoff_max_ms=1000,
        )  # fmt: skip
        partitions = [TopicPartition(recommendations, p) for p in consumer.partitions_for_topic(recommendations) or ()]
        consumer.assign(partitions)
        consumer.seek_to_end(*partitions)
        for partition in partitions:
            consumer.position(partition)  # asks the broker now: no list may slip by before the first poll
        producer.partitions_for(events)
    except KafkaError as error:
        raise TransportError(f"broker {bootstrap}: {error}") from error
    reader = Reader(consumer, ledger)
    reader.start()
    try:
        yield Sender(producer, events, ledger), reader
    finally:
        reader.stop()
        consumer.close()
        with suppress(KafkaError):
            producer.close(timeout=FLUSH_S)


def replay(
    events: Sequence[Event],
    rate: float,
    duration: float | None,
    sender: Sender,
    look: Callable[[float], None],
    stop: Stop,
) -> float:
    """Send the events at `rate` a second, until they end, `duration` is over, or the user asks for the end.

    Args:
        look: called once a second with the seconds since the start; what it raises ends the replay.

    Returns:
        The seconds it took.
    """
    start = time.monotonic()
    pace = Pace(start, rate)
    end = start + duration if duration else float("inf")
    sent, line = 0, start + LINE_S
    with suppress(Stopped):
        while (now := time.monotonic()) < end:
            if now >= line:
                look(now - start)
                line += LINE_S
            for event in events[sent : min(pace.due(now), sent + int(rate) + 1)]:
                sender.send(event)
                sent += 1
            if sent == len(events):
                break
            stop.wait(max(0.0, min(pace.wait(sent, now), line - now, end - now)))
    return time.monotonic() - start


def await_lists(ledger: Ledger) -> None:
    """Give the last events a moment to become lists."""
    deadline = time.monotonic() + LAST_LISTS_S
    while ledger.waiting and time.monotonic() < deadline:
        time.sleep(0.02)
