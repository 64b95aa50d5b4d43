"""Events that are not well formed: the record that keeps them, and the breaker that trips when they are too many."""

from collections import deque

from stream_worker.errors import DataError, RejectedEventError
from stream_worker.outbox import Sent
from stream_worker.state import Partition
from stream_worker.transports.base import Record, Topic

MAX_REJECTED_BYTES = 900_000  # of key and value on the rejected topic: with the headers below every broker's 1 MB
MAX_KEY_BYTES = 100_000  # of them
MAX_MESSAGE_CHARACTERS = 500
WINDOW_EVENTS, LEAST_EVENTS = 10_000, 1_000


def rejected(topic: str, state: Partition, record: Record, error: RejectedEventError) -> Sent:
    """The record for the rejected topic: bytes as received, and why in the names of Kafka Connect."""
    key, value = record.key, record.value or b""
    message = f"{error}: {error.detail}" if error.detail else str(error)
    headers = {
        "topic": topic,
        "partition": str(state.number),
        "offset": str(record.offset),
        "stage": "decode",
        "exception.class.name": error.reason,
        "exception.message": message[:MAX_MESSAGE_CHARACTERS],
    }
    if key is not None and len(key) > MAX_KEY_BYTES:
        headers["truncated.key.from.bytes"] = str(len(key))
        key = key[:MAX_KEY_BYTES]
    room = MAX_REJECTED_BYTES - len(key or b"")
    if len(value) > room:
        headers["truncated.from.bytes"] = str(len(value))
        value = value[:room]
    encoded = [(f"__connect.errors.{name}", text.encode(errors="replace")) for name, text in headers.items()]
    return Sent(state, Topic.REJECTED, record.offset, key, value, headers=encoded)


class Breaker:
    """Trips when too many of the last events were rejected: somebody has changed their format.

    Args:
        topic: of the events, for the message.
        max_share: above it, it trips; 1 never does.
    """

    def __init__(self, topic: str, max_share: float) -> None:
        self._topic = topic
        self._max_share = max_share
        self._batches: deque[tuple[int, int]] = deque()  # (events, rejected), oldest first
        self._events = self._rejected = 0

    def count(self, events: int, rejects: int, last: str) -> None:
        """Note what became of some events; `last` says why the last reject was none.

        Raises:
            DataError: tripped.
        """
        self._batches.append((events, rejects))
        self._events += events
        self._rejected += rejects
        while self._events - self._batches[0][0] >= WINDOW_EVENTS:
            old_events, old_rejects = self._batches.popleft()
            self._events -= old_events
            self._rejected -= old_rejects
        if self._events >= LEAST_EVENTS and self._rejected > self._max_share * self._events:
            raise DataError(
                f"topic {self._topic!r}: {self._rejected} of the last {self._events} events were rejected, the last "
                f"one because {last}. Has their format changed? They are kept on the rejected topic. "
                "--event-*-field and --event-decoder say how to read them; --max-reject-share 1 goes on regardless."
            )
