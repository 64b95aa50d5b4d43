"""The topics of a benchmark: made, read from outside, and watched."""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

from benchmarks.coverage import Listed, Seen


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
    """Makes topics and looks at positions."""

    def __init__(self, bootstrap: str) -> None:
        self._client = KafkaAdminClient(bootstrap_servers=bootstrap.split(","))

    def create(self, topics: Iterable[str]) -> None:
        """One partition each; the broker puts its own time on every record, of events and lists alike."""
        options = {
            "num_partitions": 1,
            "replication_factor": 1,
            "configs": {"message.timestamp.type": "LogAppendTime", "cleanup.policy": "delete"},
        }
        self._client.create_topics(dict.fromkeys(topics, options), wait_for_metadata=True)

    def committed(self, group: str, topic: str) -> int:
        """The group's position on partition 0, -1 if it has none."""
        found = self._client.list_group_offsets(group)[group]
        position = found.get(TopicPartition(topic, 0))
        return -1 if position is None else int(position.offset)

    def delete(self, topics: Iterable[str]) -> None:
        """Remove them."""
        self._client.delete_topics(list(topics))

    def close(self) -> None:
        """Done."""
        self._client.close()
