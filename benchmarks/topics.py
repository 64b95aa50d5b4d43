"""The topics of a benchmark: made, read from outside, and watched."""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

from benchmarks.coverage import Listed, Seen

# The broker puts its own time on every record, of events and lists alike.
PLAIN = {"cleanup.policy": "delete", "message.timestamp.type": "LogAppendTime"}
# As a deployment's, but the broker's cleaner does not run while something is measured.
COMPACTED = {"cleanup.policy": "compact", "min.compaction.lag.ms": "86400000"}


class Covers(msgspec.Struct):
    """What is read of a list."""

    offset: int


_decode = msgspec.json.Decoder(Covers).decode


class Tail:
    """Reads what is new on partition 0 of a topic, beginning at its present end."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._partition = TopicPartition(topic, 0)
        self._consumer = KafkaConsumer(
            bootstrap_servers=bootstrap.split(","), max_partition_fetch_bytes=8 * 1024 * 1024, max_poll_records=5000
        )
        self._consumer.assign([self._partition])
        self.skip()

    def end(self) -> int:
        """The topic's present end."""
        offset: int = self._consumer.end_offsets([self._partition])[self._partition]
        return offset

    def skip(self) -> None:
        """What is there now is not new."""
        self._next = self.end()
        self._consumer.seek(self._partition, self._next)

    def events(self) -> list[Seen]:
        """New events."""
        return [Seen(record.key, record.offset, record.timestamp) for record in self._records()]

    def lists(self) -> tuple[list[Listed], int]:
        """New lists, and how many bytes their values have."""
        lists, size = [], 0
        for record in self._records():
            lists.append(Listed(record.key, _decode(record.value).offset, record.timestamp))
            size += len(record.value)
        return lists, size

    def close(self) -> None:
        """Done."""
        self._consumer.close()

    def _records(self) -> Iterator[Any]:
        end = self.end()
        while self._next < end:
            for records in self._consumer.poll(timeout_ms=500).values():
                yield from records
                self._next = records[-1].offset + 1


class Admin:
    """Makes topics and looks at them."""

    def __init__(self, bootstrap: str) -> None:
        self._client = KafkaAdminClient(bootstrap_servers=bootstrap.split(","))

    def create(self, topics: Iterable[str], configs: dict[str, str] = PLAIN, partitions: int = 1) -> None:
        """Topics with so many partitions each."""
        options = {"num_partitions": partitions, "replication_factor": 1, "configs": configs}
        self._client.create_topics(dict.fromkeys(topics, options), wait_for_metadata=True)

    def topic_id(self, topic: str) -> str:
        """What Kafka gave it when it was made."""
        return str(self._client.describe_topics([topic])[0]["topic_id"])

    def delete(self, topics: Iterable[str]) -> None:
        """Remove those of them that there are."""
        there = set(self._client.list_topics())
        self._client.delete_topics([topic for topic in topics if topic in there])

    def close(self) -> None:
        """Done."""
        self._client.close()
