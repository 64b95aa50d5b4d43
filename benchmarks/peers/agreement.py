"""Whether contenders did the same work: after the same event a user has the same list, from whomever."""

from collections.abc import Collection, Iterable, Mapping

import msgspec
from kafka import KafkaConsumer, TopicPartition

from benchmarks.errors import BenchmarkError

CLOSE = 1e-4  # of two scores that differ by rounding alone, relative


class Answer(msgspec.Struct):
    """What is compared of a list."""

    offset: int
    items: list[str]
    scores: list[float]


_decode = msgspec.json.Decoder(Answer).decode


def answers(bootstrap: str, topic: str, users: Collection[bytes] | None = None) -> dict[bytes, Answer]:
    """The newest list of each of these users, or of all, on partition 0 of a topic."""
    partition = TopicPartition(topic, 0)
    consumer = KafkaConsumer(bootstrap_servers=bootstrap.split(","), max_partition_fetch_bytes=8 * 1024 * 1024)
    try:
        consumer.assign([partition])
        consumer.seek_to_beginning()
        end = consumer.end_offsets([partition])[partition]
        values = {}
        while consumer.position(partition) < end:
            for record in consumer.poll(timeout_ms=500, max_records=5000).get(partition, ()):
                if users is None or record.key in users:
                    values[record.key] = record.value
    finally:
        consumer.close()
    return {user: _decode(value) for user, value in values.items()}


def check(
    ours: str, our: Mapping[bytes, Answer], theirs: str, their: Mapping[bytes, Answer], users: Iterable[bytes]
) -> None:
    """Compare the lists of two contenders, `ours` and `theirs` by name.

    Raises:
        BenchmarkError: a list is missing, or another one.
    """
    for user in users:
        one, other = our.get(user), their.get(user)
        if one is None or other is None or one.offset != other.offset or not _same(one, other):
            raise BenchmarkError(
                f"{theirs} does not do the same as {ours}: user {user.decode()!r} has\n"
                f"  {_show(other)}\nnot\n  {_show(one)}"
            )


def _same(one: Answer, other: Answer) -> bool:
    """The same items with the same scores, in the same order but for ties."""
    if len(one.items) != len(other.items) or not all(map(_close, one.scores, other.scores)):
        return False
    score = dict(zip(other.items, other.scores, strict=True))
    last = other.scores[-1] if other.scores else 0.0  # an item tied with the last may be the one left out
    pairs = zip(one.items, one.scores, strict=True)
    return all(_close(value, score.get(item, last)) for item, value in pairs)


def _close(one: float, other: float) -> bool:
    return abs(one - other) <= CLOSE * max(abs(one), abs(other), 1.0)


def _show(answer: Answer | None) -> str:
    return "no list" if answer is None else f"offset {answer.offset}: {answer.items[:5]} {answer.scores[:5]} …"
