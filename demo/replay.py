"""The stream: events go out at a steady rate, lists come in, and once a second somebody looks."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Self

from kafka import KafkaProducer
from kafka.errors import KafkaError

from demo.children import Stop, Stopped
from demo.ending import Ending
from demo.latency import Ledger
from demo.model import Event
from demo.pacing import Pace
from stream_worker.errors import TransportError
from stream_worker.reader import Recommendations, Update

LINE_S = 1.0
POLL_S = 0.1  # the reader's longest wait; what arrives wakes it at once
ACK_S = 5.0
FLUSH_S = 5.0
LAST_LISTS_S = 3.0
TURN_S = 0.2  # the longest between two turns of the replay's loop


class Sender:
    """Events to Kafka, keyed by user, without waiting for each. Any thread may send."""

    def __init__(self, producer: Any, topic: str, ledger: Ledger) -> None:
        self._producer = producer
        self._topic = topic
        self._ledger = ledger
        self.failed = 0

    def send(self, user: str, value: bytes) -> Any:
        """Hand one event to the client. Returns the future of its record's metadata.

        Raises:
            TransportError: the broker is away for longer than the client can buffer.
        """
        self._ledger.sent(user, time.monotonic())
        try:
            return self._producer.send(self._topic, key=user.encode(), value=value).add_errback(self._fail)
        except KafkaError as error:
            raise TransportError(f"events cannot be sent: {error}. Is the broker running?") from error

    def send_now(self, user: str, value: bytes) -> tuple[int, int]:
        """Send one event and wait for its acknowledgement. Returns its partition and offset.

        Raises:
            TransportError: Kafka does not take it in time.
        """
        try:
            place = self.send(user, value).get(timeout=ACK_S)
        except KafkaError as error:
            raise TransportError(f"the event cannot be sent: {error}. Is the broker running?") from error
        return place.partition, place.offset

    def flush(self) -> None:
        """Wait until all is acknowledged, or for a few seconds."""
        with suppress(KafkaError):
            self._producer.flush(timeout=FLUSH_S)

    def _fail(self, _error: BaseException) -> None:
        self.failed += 1


class Reader(threading.Thread):
    """Reads every list as it is published, as an application does.

    Args:
        lists: connected; the thread's own while the `with` lasts.
        ledger: told of each list.
        listener: told of each update, after the ledger.
    """

    def __init__(self, lists: Recommendations, ledger: Ledger, listener: Callable[[Update], None]) -> None:
        super().__init__(name="reader", daemon=True)
        self._lists = lists
        self._ledger = ledger
        self._listener = listener
        self._done = threading.Event()
        self.problem: Exception | None = None

    def run(self) -> None:
        """Until the `with` ends."""
        try:
            while not self._done.is_set():
                updates = self._lists.poll(POLL_S)
                now = time.monotonic()
                for update in updates:
                    if update.top is not None:  # None: a user's list was erased
                        self._ledger.read(update.top, now)
                    self._listener(update)
        except Exception as error:  # shown by the main thread, which would else see a stream without lists
            self.problem = error

    def __enter__(self) -> Self:
        """Read from now on."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the thread; the lists are the caller's again."""
        self._done.set()
        self.join()


@contextmanager
def sending(bootstrap: str, events: str, ledger: Ledger) -> Iterator[Sender]:
    """A sender.

    Raises:
        TransportError: the broker does not answer.
    """
    try:
        producer = KafkaProducer(
            bootstrap_servers=bootstrap.split(","), acks="all", enable_idempotence=True, linger_ms=0, batch_size=65536,
            max_block_ms=5000, reconnect_backoff_max_ms=1000,
        )  # fmt: skip
        producer.partitions_for(events)
    except KafkaError as error:
        raise TransportError(f"broker {bootstrap}: {error}") from error
    try:
        yield Sender(producer, events, ledger)
    finally:
        with suppress(KafkaError):
            producer.close(timeout=FLUSH_S)


def replay(
    events: Sequence[Event],
    rate: float,
    ending: Ending,
    send: Callable[[Event], object],
    look: Callable[[float, int], None],
    turn: Callable[[], None],
    stop: Stop,
) -> float:
    """Send the events at `rate` a second, until the ending, or until the user asks for the end.

    Args:
        look: called once a second with the seconds since the start and the number of events left; what it raises ends
            the replay.
        turn: called often: every few events, and at least each `TURN_S`.

    Returns:
        The seconds it took.
    """
    start = time.monotonic()
    pace = Pace(start, rate)
    sent, line = 0, start + LINE_S
    with suppress(Stopped):
        while not ending.over((now := time.monotonic()) - start, len(events) - sent):
            turn()
            if now >= line:
                look(now - start, len(events) - sent)
                line += LINE_S
            for event in events[sent : min(pace.due(now), sent + int(rate) + 1)]:
                send(event)
                sent += 1
            due = pace.wait(sent, now) if sent < len(events) else TURN_S
            stop.wait(max(0.0, min(due, line - now, TURN_S)))
    return time.monotonic() - start


def await_lists(ledger: Ledger) -> None:
    """Give the last events a moment to become lists."""
    deadline = time.monotonic() + LAST_LISTS_S
    while ledger.waiting and time.monotonic() < deadline:
        time.sleep(0.02)
