"""The comparison itself: it finds what is planted."""

import struct
from collections.abc import Callable

import pytest
from kafka import KafkaProducer

from tests.chaos.arena import Arena
from tests.chaos.verdict import judge, read

pytestmark = pytest.mark.kafka

EVENTS_AT = 16  # where a state record counts its events


def newest(arena: Arena, topic: str, user: bytes) -> tuple[int, bytes]:
    """Partition and value of the newest record of a user."""
    found = [record for records in read(arena, topic, committed=True).values() for record in records]
    last = [record for record in found if record.key == user][-1]
    return last.partition, last.value


def test_planted_faults_are_found(arena: Arena) -> None:
    worker = arena.worker()
    users = ["lost", "doubled", "wrong", "stale", "fine"]
    arena.send([(user, item) for item in ("i1", "i2") for user in users])
    arena.caught_up()
    assert worker.terminate()[0] == 0
    assert judge(arena).clean

    producer = KafkaProducer(bootstrap_servers=arena.broker.bootstrap)

    def plant(topic: str, user: bytes, change: Callable[[bytes], bytes | None]) -> None:
        partition, value = newest(arena, topic, user)
        producer.send(arena.names[topic], change(value), user, partition=partition).get(10)

    def counted_twice(value: bytes) -> bytes:
        (events,) = struct.unpack_from("<q", value, EVENTS_AT)
        return value[:EVENTS_AT] + struct.pack("<q", events * 2) + value[EVENTS_AT + 8 :]

    plant("state_topic", b"lost", lambda _: None)
    plant("state_topic", b"doubled", counted_twice)
    plant("state_topic", b"wrong", lambda value: value.replace(b"view", b"vote"))
    plant("recommendations_topic", b"stale", lambda value: value.replace(b'"events":2', b'"events":1'))
    producer.close()
    verdict = judge(arena)
    assert (verdict.lost, verdict.doubled, verdict.wrong, verdict.stale) == (1, 1, 1, 1), verdict.told
