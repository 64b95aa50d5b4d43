"""Records into kafka-python's producer for half of what its `send` costs each.

`send` looks up topic and partition, estimates sizes, formats what it might log and wakes the client's thread, for each
record; the thread then fights for the GIL with whoever sends the next one. Underneath is an accumulator that takes a
record and gives its future. It is private, hence kafka-python below 3.1; `tests/worker/test_transport_contract.py` and
the crash tests hold what is built on it.
"""

from collections.abc import Sequence
from typing import Any

from kafka import KafkaProducer, TopicPartition

LARGE = 2**18  # bytes of a value from which on `send` takes it, which knows the limits


class Appender:
    """Appends records to a producer; nothing is on its way before `push`.

    Args:
        client: a producer. One that is transactional needs an appender for each transaction.
    """

    def __init__(self, client: KafkaProducer) -> None:
        self._client = client
        self._append = client._accumulator.append
        self._partitions: dict[tuple[str, int], TopicPartition] = {}
        self._waiting = False

    def append(
        self,
        topic: str,
        partition: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
        timestamp_ms: int | None = None,
    ) -> Any:
        """The future of a record. `partition` None: by the key, as the client does it.

        Raises:
            KafkaError: the client does not take it.
        """
        client = self._client
        if partition is None and client._metadata.partitions_for_topic(topic) is not None:
            partition = client._partition(topic, None, key, value, key, value)
        at = None if partition is None else self._partitions.get((topic, partition))
        if at is None or (value is not None and len(value) > LARGE):
            future = client.send(topic, value, key, list(headers), partition, timestamp_ms)  # waits for metadata
            if partition is not None:
                self._partitions[topic, partition] = TopicPartition(topic, partition)
            return future
        self._waiting = True
        return self._append(at, timestamp_ms, key, value, headers)[0]

    def push(self) -> None:
        """What was appended is on its way."""
        if self._waiting:
            self._waiting = False
            self._client._sender.wakeup()
