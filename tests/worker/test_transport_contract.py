"""One contract over memory, files and a real Kafka through each client."""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from demo.broker import Broker
from stream_worker.settings import Settings, TopicsSettings
from stream_worker.topics import check_topics
from stream_worker.transports.base import Cause, Change, Delivery, Outcome, Record, Topic, Transport
from stream_worker.transports.files import FileTransport
from stream_worker.transports.kafka import KafkaTransport
from stream_worker.transports.librdkafka import LibrdkafkaTransport
from stream_worker.transports.memory import MemoryLog, MemoryTransport

DEADLINE_S = 30
EVENTS = [b'{"user": "u%d", "item": "i"}' % number for number in range(7)]


class Rig(ABC):
    """A transport, and a way to see both ends of it."""

    transport: Transport

    @abstractmethod
    def published(self, topic: Topic) -> Sequence[tuple[bytes | None, bytes | None]]:
        """(key, value) of what arrived, as far as the transport keeps them."""

    def another(self) -> Transport:
        """One more member of the group, open."""
        raise NotImplementedError

    def expel(self) -> None:
        """Make the group throw the transport out, without telling it."""
        raise NotImplementedError

    @abstractmethod
    def reopen(self) -> Transport:
        """Close, and open a new one on the same log and group."""


class MemoryRig(Rig):
    def __init__(self) -> None:
        self.log = MemoryLog()
        for value in EVENTS:
            self.log.append(value, b"u")
        self.transport = MemoryTransport(self.log, max_poll_records=3)

    def published(self, topic: Topic) -> Sequence[tuple[bytes | None, bytes | None]]:
        return [(record.key, record.value) for record in self.log.topics[topic]]

    def reopen(self) -> Transport:
        self.transport.close()
        self.transport = MemoryTransport(self.log, max_poll_records=3)
        self.transport.open()
        return self.transport

    def another(self) -> Transport:
        transport = MemoryTransport(self.log, max_poll_records=3)
        transport.open()
        return transport

    def expel(self) -> None:
        self.log.members.remove(self.transport)  # type: ignore[arg-type]
        self.log.rebalance()


class FileRig(Rig):
    def __init__(self, directory: Path) -> None:
        self.paths = directory / "events.jsonl", directory / "lists.jsonl"
        self.paths[0].write_bytes(b"\n".join(EVENTS))
        self.transport = FileTransport(*self.paths, max_poll_records=3)

    def published(self, topic: Topic) -> Sequence[tuple[bytes | None, bytes | None]]:
        self.transport.flush(1)
        path = self.paths[1] if topic is Topic.RECOMMENDATIONS else self.paths[1].with_name("lists.jsonl.rejected")
        return [(None, line) for line in path.read_bytes().splitlines()]

    def reopen(self) -> Transport:
        self.transport.close()
        self.transport = FileTransport(*self.paths, max_poll_records=3)
        self.transport.open()
        return self.transport


class KafkaRig(Rig):
    def __init__(self, client: Callable[[Settings], Transport], broker: Broker, unique: Callable[[str], str]) -> None:
        from kafka import KafkaProducer

        self._client = client

        names: dict[str, Any] = {
            "bootstrap": broker.bootstrap,
            "events_topic": unique("events"),
            "recommendations_topic": unique("recommendations"),
            "rejected_topic": unique("rejected"),
            "state_topic": unique("state"),
        }
        check_topics(TopicsSettings(create=True, partitions=1, **names))
        producer = KafkaProducer(bootstrap_servers=broker.bootstrap)
        for value in EVENTS:
            producer.send(names["events_topic"], value, b"u").get(DEADLINE_S)
        producer.close()
        self.settings = Settings(
            bundle=Path(), group=unique("group"), max_poll_records=3, session_timeout_s=10, **names
        )
        self.transport = self._client(self.settings)

    def published(self, topic: Topic) -> Sequence[tuple[bytes | None, bytes | None]]:
        from kafka import KafkaConsumer, TopicPartition

        s = self.settings
        name = s.recommendations_topic if topic is Topic.RECOMMENDATIONS else s.rejected_topic
        consumer = KafkaConsumer(bootstrap_servers=s.bootstrap)
        partition = TopicPartition(name, 0)
        consumer.assign([partition])
        consumer.seek(partition, 0)
        end = consumer.end_offsets([partition])[partition]
        found: list[tuple[bytes | None, bytes | None]] = []
        while len(found) < end:
            found += [(one.key, one.value) for batch in consumer.poll(timeout_ms=100).values() for one in batch]
        consumer.close()
        return found

    def reopen(self) -> Transport:
        self.transport.close()
        self.transport = self._client(self.settings)
        self.transport.open()
        return self.transport

    def another(self) -> Transport:
        transport = self._client(self.settings)
        transport.open()
        return transport

    def expel(self) -> None:
        from kafka import KafkaAdminClient
        from kafka.admin import MemberToRemove

        admin = KafkaAdminClient(bootstrap_servers=self.settings.bootstrap)
        (member,) = admin.describe_groups([self.settings.group])[self.settings.group]["members"]
        admin.remove_group_members(self.settings.group, [MemberToRemove(member_id=member["member_id"])])
        admin.close()


CLIENTS: dict[str, Callable[[Settings], Transport]] = {
    "kafka-python": KafkaTransport,
    "librdkafka": LibrdkafkaTransport,
}


@pytest.fixture(params=["memory", "files", *CLIENTS])
def rig(request: pytest.FixtureRequest, tmp_path: Path, unique: Callable[[str], str]) -> Iterator[Rig]:
    """Each transport, open."""
    rig: Rig
    match request.param:
        case "memory":
            rig = MemoryRig()
        case "files":
            rig = FileRig(tmp_path)
        case client:
            rig = KafkaRig(CLIENTS[client], request.getfixturevalue("broker"), unique)
    rig.transport.open()
    yield rig
    rig.transport.close()


def until(transport: Transport, done: Callable[[list[Record]], bool], start: int = 0) -> list[Record]:
    """Poll until `done` of what came; seek new partitions to `start`."""
    records: list[Record] = []
    deadline = time.monotonic() + DEADLINE_S
    while not done(records):
        assert time.monotonic() < deadline, f"only {len(records)} records came"
        polled = transport.poll(0.05)
        for one in polled.assigned:
            transport.seek(one.partition, start)
        assert all(len(batch) for batch in polled.records.values())
        records += [record for batch in polled.records.values() for record in batch]
    return records


def in_contact(transport: Transport, age_s: float) -> None:
    """Poll until the group's last answer is no older."""
    deadline = time.monotonic() + DEADLINE_S
    while transport.contact_age_s > age_s:
        assert time.monotonic() < deadline, "the group does not answer"
        transport.poll(0.05)


def delivered(transport: Transport, count: int) -> list[Delivery]:
    """The next `count` deliveries."""
    found: list[Delivery] = []
    deadline = time.monotonic() + DEADLINE_S
    transport.push()
    while len(found) < count:
        assert time.monotonic() < deadline, f"only {len(found)} deliveries came"
        transport.poll(0.01)
        found += transport.deliveries()
    return found


def test_records_come_whole_in_order_and_no_more_than_asked_for(rig: Rig) -> None:
    records = until(rig.transport, lambda records: len(records) == len(EVENTS))
    assert [record.offset for record in records] == list(range(len(EVENTS)))
    assert [record.value.strip() for record in records if record.value] == EVENTS
    assert rig.transport.partitions == 1
    assert rig.transport.lag()[0] == 0
    deadline = time.monotonic() + DEADLINE_S
    while rig.transport.contact_age_s > DEADLINE_S:
        assert time.monotonic() < deadline, "the group does not answer"
        rig.transport.poll(0.05)


@pytest.mark.parametrize("client", CLIENTS)
def test_what_transactions_leave_behind_does_not_lag(client: str, broker: Broker, unique: Callable[[str], str]) -> None:
    """Markers, and all records of an aborted transaction, have offsets and are no events."""
    from kafka import KafkaProducer

    rig = KafkaRig(CLIENTS[client], broker, unique)
    transport, topic = rig.transport, rig.settings.events_topic
    transport.open()
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id=unique("transaction"))
    producer.init_transactions()
    for end in (producer.commit_transaction, producer.abort_transaction):
        producer.begin_transaction()
        for value in EVENTS[:2]:
            producer.send(topic, value, b"u").get(DEADLINE_S)
        end()
    producer.close()
    records = until(transport, lambda records: len(records) == len(EVENTS) + 2)
    deadline = time.monotonic() + DEADLINE_S
    while (polled := transport.poll(0.05)).reached[0] < len(EVENTS) + 6:
        assert time.monotonic() < deadline, polled
        assert not polled.records
    assert polled.reached == {0: len(EVENTS) + 6}
    assert transport.lag() == {0: 0}
    assert records[-1].offset == len(EVENTS) + 1
    transport.close()


def test_every_published_record_is_delivered_back_once(rig: Rig) -> None:
    until(rig.transport, lambda records: len(records) == len(EVENTS))
    tokens = [object() for _ in range(20)]
    for number, token in enumerate(tokens):
        rig.transport.publish(Topic.RECOMMENDATIONS, b"u", b'{"n":%d}' % number, token)
    found = delivered(rig.transport, len(tokens))
    assert {id(one.token) for one in found} == {id(token) for token in tokens}
    assert not any(one.failed for one in found)
    assert rig.transport.in_flight == 0
    assert rig.transport.writable
    values = [value for _, value in rig.published(Topic.RECOMMENDATIONS)]
    assert values == [b'{"n":%d}' % number for number in range(20)]


def test_a_tombstone_and_a_rejected_event_keep_what_they_must(rig: Rig) -> None:
    until(rig.transport, lambda records: len(records) == len(EVENTS))
    rig.transport.publish(Topic.RECOMMENDATIONS, b"u1", None, "tombstone")
    rig.transport.publish(Topic.REJECTED, b"u1", b"{bad", "reject", [("why", b"not_json")])
    assert {one.token for one in delivered(rig.transport, 2)} == {"tombstone", "reject"}
    ((_, tombstone),) = rig.published(Topic.RECOMMENDATIONS)
    ((_, reject),) = rig.published(Topic.REJECTED)
    assert tombstone is None or json.loads(tombstone) == {"user": "u1", "items": None}
    assert reject is not None
    assert b"{bad" in reject


def test_flush_waits_for_what_is_in_flight(rig: Rig) -> None:
    until(rig.transport, lambda records: len(records) == len(EVENTS))
    for number in range(100):
        rig.transport.publish(Topic.RECOMMENDATIONS, b"u", b"{}", number)
    rig.transport.flush(DEADLINE_S)
    assert sorted(one.token for one in rig.transport.deliveries()) == list(range(100))


def restored(transport: Transport) -> list[tuple[bytes | None, bytes | None]]:
    """(key, value) on the changelog of partition 0, from its assignment to its end."""
    found: list[Record] = []
    deadline = time.monotonic() + DEADLINE_S
    while True:
        assert time.monotonic() < deadline, "the changelog did not end"
        polled = transport.poll(0.05)
        found += polled.states.get(0, ())
        if 0 in polled.restored:
            return [(record.key, record.value) for record in found]


def written(transport: Transport, changes: list[Change], position: int) -> Outcome:
    """A checkpoint, and what became of it."""
    transport.checkpoint(iter(changes), {0: position})
    deadline = time.monotonic() + DEADLINE_S
    while (outcome := transport.checkpointed(0.01)) is None:
        assert time.monotonic() < deadline
        transport.poll(0.01)
    assert transport.checkpointed() is None, "told once"
    return outcome


CHANGES = [Change(0, b"u1", b"one"), Change(0, b"u2", b"two")]
durable = pytest.mark.parametrize("rig", ["memory", *CLIENTS], indirect=True)  # a file is always read from its start


@durable
def test_a_checkpoint_is_found_by_the_next_owner(rig: Rig) -> None:
    assert restored(rig.transport) == []
    assert written(rig.transport, CHANGES, 4) == Outcome(None)
    assert written(rig.transport, [Change(0, b"u1", None), Change(0, b"u3", b"three")], 5) == Outcome(None)
    states = restored(rig.reopen())
    assert states == [*((one.key, one.value) for one in CHANGES), (b"u1", None), (b"u3", b"three")]


@durable
def test_a_checkpoint_of_a_member_that_was_passed_over_is_refused(rig: Rig) -> None:
    """It does not poll, so it has not heard that another joined; the membership it would use is of before."""
    restored(rig.transport)
    rig.expel()
    other = rig.another()
    outcome = None
    rig.transport.checkpoint(iter(CHANGES), {0: 4})
    deadline = time.monotonic() + DEADLINE_S
    while (outcome := rig.transport.checkpointed(0.01)) is None:
        assert time.monotonic() < deadline
    assert outcome.cause is Cause.MEMBERSHIP
    assert restored(other) == []
    other.close()


@durable
def test_contact_with_the_group_is_not_renewed_once_it_has_thrown_us_out(rig: Rig) -> None:
    """Without a poll: what a client's threads do meanwhile must not look like an answer."""
    restored(rig.transport)
    in_contact(rig.transport, 1)
    rig.expel()
    expelled = time.monotonic()
    while time.monotonic() - expelled < 3:  # a heartbeat, and a question
        now = time.monotonic()
        assert rig.transport.contact_age_s >= now - expelled


def test_a_rebalance_noted_before_a_stall_is_no_contact_after_it(broker: Broker, unique: Callable[[str], str]) -> None:
    """kafka-python's thread notes it; the main thread may be stopped before it looks, and must not take it for news."""
    transport = KafkaTransport(KafkaRig(KafkaTransport, broker, unique).settings)
    transport.open()
    transport._rebalanced(True, [])  # noqa: SLF001 - as the client's thread does
    noted = time.monotonic()
    while time.monotonic() - noted < 0.5:
        time.sleep(0.05)
    transport._drain_rebalances()  # noqa: SLF001 - the beginning of a poll, of which the rest would join the group
    assert 0.5 <= transport.contact_age_s < DEADLINE_S
    transport.close()


@durable
def test_after_a_stall_the_group_is_asked_at_once(rig: Rig) -> None:
    """A worker publishes nothing before the answer, and a heartbeat may be a quarter of a session away."""
    restored(rig.transport)
    in_contact(rig.transport, 0.2)
    stalled = time.monotonic()
    while time.monotonic() - stalled < 2.6:  # of a session of 10 s: the heartbeat in between has just been sent
        time.sleep(0.05)
    woken = time.monotonic()
    while rig.transport.contact_age_s >= time.monotonic() - woken:
        assert time.monotonic() - woken < 1.5, "nobody asked"
        rig.transport.poll(0.05)


@durable
def test_while_held_no_events_come_and_all_else_does(rig: Rig) -> None:
    rig.transport.hold(True)
    assert restored(rig.transport) == []
    rig.transport.seek(0, 0)
    for _ in range(10):
        assert not rig.transport.poll(0.02).records
    assert written(rig.transport, CHANGES, 4) == Outcome(None)
    rig.transport.hold(False)
    assert len(until(rig.transport, lambda records: len(records) == len(EVENTS))) == len(EVENTS)


def test_nothing_is_delivered_before_seek(rig: Rig) -> None:
    deadline = time.monotonic() + DEADLINE_S
    assigned: list[Any] = []
    while not assigned:
        assert time.monotonic() < deadline
        polled = rig.transport.poll(0.05)
        assert not polled.records
        assigned += polled.assigned
    (one,) = assigned
    assert (one.partition, one.start) == (0, 0)
    for _ in range(5):
        assert not rig.transport.poll(0.02).records
    rig.transport.seek(0, 0)
    assert len(until(rig.transport, lambda records: len(records) == len(EVENTS))) == len(EVENTS)
