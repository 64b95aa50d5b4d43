"""Records of librdkafka: fetched in batches, with the attributes that the seam asks for."""

from typing import NamedTuple, Self

from confluent_kafka import Consumer, Message


class ClientRecord(NamedTuple):
    """See `Record`."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None

    @classmethod
    def of(cls, message: Message) -> Self:
        """From the client's own, whose attributes are calls."""
        return cls(message.offset(), message.timestamp()[1], message.key(), message.value())  # type: ignore[arg-type]


def take(consumer: Consumer, most: int, timeout_s: float) -> list[Message]:
    """What has been fetched, errors included; waits for the first alone.

    `consume(most, timeout_s)` would wait until there are so many: at 500 records/s that is the whole time-out.
    """
    first = consumer.consume(1, timeout_s)
    return first + consumer.consume(most - 1, 0) if first and most > 1 else first
