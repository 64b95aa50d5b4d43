"""Partitions come and go: where a state begins, what is refused, and what a worker may do that is in doubt."""

import contextlib
import dataclasses
import itertools
import random
import time
from collections.abc import Callable

import pytest

from stream_worker.bundle import Bundle
from stream_worker.changelog import POSITION_KEY, Loader
from stream_worker.errors import DataError
from stream_worker.ownership import Lease
from stream_worker.pipeline import Pipeline
from stream_worker.state import Actions, Partition
from stream_worker.transports.base import Cause, Topic
from stream_worker.transports.memory import MemoryLog, MemoryRecord, MemoryTransport
from tests.worker.traffic import Traffic
from tests.worker.world import START_MS, World

SHORT = {"history_length": 4, "excluded_length": 2, "max_reject_share": 1}
SESSION_S = 1.0  # the shortest; a lease ends after half of it


def kept(popularity: Bundle, partitions: int = 1) -> World:
    """A world whose changelog has two users in each partition, and a reject."""
    world = World(popularity, partitions=partitions, **SHORT)
    for number in range(partitions):
        for user in (number, number + partitions):
            world.event(f"u{user}", "i1", partition=number)
        world.log.append(b"{", b"u0", number)
    world.finish()
    return world


def refusal(world: World) -> str:
    """What a new process says."""
    world.restart()
    with pytest.raises(DataError) as caught:
        world.finish()
    assert caught.value.exit_code == 4
    return str(caught.value)


def steps(pipeline: Pipeline, count: int) -> None:
    """So many steps."""
    for _ in range(count):
        pipeline.step(0)


def take_over(world: World) -> Pipeline:
    """Another worker joins and serves its partition to the end."""

    def served(number: int) -> bool:
        one = other.owned[number]
        return one.written == len(world.log.events[number]) and not one.state.owed()

    _, other, _ = world.worker()
    while not other.owned or not all(map(served, other.owned)):
        other.step(0)
    return other


# -- where a state begins --------------------------------------------------------------------------------------------


def test_a_first_start_takes_the_events_that_are_there(popularity: Bundle) -> None:
    world = World(popularity)
    world.log.members.clear()
    world.event("u1", "i1")
    world.event("u1", "i2", second=1)
    world.restart()
    world.finish()
    assert world.newest()["u1"].events == 2


def test_a_first_start_at_latest_leaves_them_out_for_good(popularity: Bundle) -> None:
    world = World(popularity, first_start="latest")
    world.log.members.clear()
    world.event("u1", "i1")
    world.restart()
    world.finish()
    world.event("u1", "i2", second=1)
    world.finish()
    assert world.newest()["u1"].events == 1
    assert world.newest()["u1"].offset == 1
    world.restart()  # a crash before the first event must not move the beginning
    world.event("u1", "i3", second=2)
    world.finish()
    assert world.newest()["u1"].events == 2


def test_a_start_at_latest_is_remembered_before_the_first_event(popularity: Bundle) -> None:
    world = World(popularity, first_start="latest")
    world.finish()
    world.restart()
    world.event("u1", "i1")  # while no worker has polled
    world.finish()
    assert world.newest()["u1"].events == 1


def test_a_first_start_begins_where_the_log_still_does(popularity: Bundle) -> None:
    world = World(popularity)
    world.log.members.clear()
    for second in range(5):
        world.event("u1", f"i{second}", second=second)
    world.log.start[0] = 3
    world.restart()
    world.finish()
    assert world.newest()["u1"].events == 2
    assert world.metrics.total("lost_events") == 0


# -- what is refused -------------------------------------------------------------------------------------------------


def test_a_topic_that_was_made_anew_is_refused(popularity: Bundle) -> None:
    world = kept(popularity)
    world.log.topic_id = "another"
    assert "it was deleted and made anew (id then memory, now another; read up to 3" in refusal(world)


def test_a_topic_that_ends_before_the_position_is_refused(popularity: Bundle) -> None:
    world = kept(popularity)
    del world.log.events[0][1:]
    message = refusal(world)
    assert "topic 'events' partition 0" in message
    assert "deleted and made anew" in message
    assert "read up to 3, ends at 1" in message
    assert "name a new --state-topic" in message


def test_another_number_of_partitions_is_refused(popularity: Bundle) -> None:
    world = kept(popularity)
    world.log.partitions = 2
    world.log.events.append([])
    world.log.changelog.append([])
    message = refusal(world)
    assert "the topic has 2 partitions, but 'stream-worker-state' was made from 1: users have moved" in message


@pytest.mark.parametrize("change", [{"history_length": 5}, {"excluded_length": 3}])
def test_other_lengths_of_the_histories_are_refused(popularity: Bundle, change: dict[str, int]) -> None:
    world = kept(popularity)
    world.settings = world.settings.model_copy(update=change)
    message = refusal(world)
    assert "stream-worker-state-0: was made with --history-length 4 --excluded-length 2, not" in message


def test_events_that_were_deleted_before_they_were_folded_are_refused(popularity: Bundle) -> None:
    world = kept(popularity)
    world.log.members.clear()
    for second in range(5):
        world.event("u0", "i2", second=second + 1)
    world.log.start[0] = 7
    message = refusal(world)
    assert "the 4 events from offset 3 to 6 were deleted before they were folded" in message
    assert "--on-lost-events skip" in message


def test_events_that_were_deleted_can_be_gone_without_once(popularity: Bundle) -> None:
    world = kept(popularity)
    world.log.members.clear()
    for second in range(5):
        world.event("u0", "i2", second=second + 1)
    world.log.start[0] = 7
    world.settings = world.settings.model_copy(update={"on_lost_events": "skip"})
    world.restart()
    world.finish()
    assert world.metrics.total("lost_events") == 4
    assert world.newest()["u0"].events == 2  # one before the gap, one behind it
    world.restart()
    world.finish()
    assert world.metrics.total("lost_events") == 0


@pytest.mark.parametrize(
    ("key", "spoil", "says"),
    [
        pytest.param(b"u0", lambda value: b"\x02" + value[1:], "version 2, not 1", id="newer"),
        pytest.param(b"u0", lambda value: b"", "less than the 48 bytes of a header", id="empty"),
        pytest.param(b"u0", lambda value: value[:20], "less than the 48 bytes of a header", id="cut in the header"),
        pytest.param(b"u0", lambda value: value[:-1], "its size does not fit its header", id="cut"),
        pytest.param(b"u0", lambda value: value + b"x", "its size does not fit its header", id="too long"),
        pytest.param(POSITION_KEY, lambda value: b"\x02" + value[1:], "version 2, not 1", id="newer position"),
        pytest.param(POSITION_KEY, lambda value: value[:-1], "Input data was truncated", id="position cut"),
        pytest.param(POSITION_KEY, lambda value: b"\x01{}", "missing required field", id="position without fields"),
    ],
)
def test_a_changelog_that_is_not_of_this_version_is_refused(
    popularity: Bundle, key: bytes, spoil: Callable[[bytes], bytes], says: str
) -> None:
    world = kept(popularity)
    place, record = [(place, one) for place, one in enumerate(world.log.changelog[0]) if one.key == key][-1]
    assert record.value
    world.log.changelog[0][place] = dataclasses.replace(record, value=spoil(record.value))
    message = refusal(world)
    assert f"stream-worker-state-0@{record.offset}: not a state of this version of stream-worker" in message
    assert says in message
    assert "has a newer version" in message


@pytest.mark.parametrize("key", [None, b"\xff"])
def test_a_changelog_that_something_else_writes_to_is_refused(popularity: Bundle, key: bytes | None) -> None:
    world = kept(popularity)
    last = world.log.changelog[0][-1]
    world.log.changelog[0].append(dataclasses.replace(last, offset=last.offset + 1, key=key))
    assert "Does something else write to the topic" in refusal(world)


def test_a_damaged_record_is_refused_or_read_but_crashes_nothing(popularity: Bundle, seed: int) -> None:
    rng = random.Random(seed)
    world = kept(popularity)
    values = [record.value for record in world.log.changelog[0] if record.value]
    refused = 0
    for offset in range(3000):
        value = bytearray(rng.choice(values))
        for _ in range(rng.randrange(1, 4)):
            value[rng.randrange(len(value))] = rng.randrange(256)
        record = MemoryRecord(offset, 0, rng.choice([b"u0", POSITION_KEY]), bytes(value[: rng.randrange(1, 300)]))
        loader = Loader(Partition(0, 4, 2, 5), Actions(), "state-0")
        with contextlib.suppress(DataError):
            loader.load([record])
            continue
        refused += 1
    assert refused > 1000


# -- restore ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compacted", [False, True])
def test_a_long_changelog_is_restored_in_pieces(popularity: Bundle, compacted: bool, seed: int) -> None:
    rng = random.Random(seed)
    world = World(popularity, partitions=2, max_poll_records=7, **SHORT)
    traffic = Traffic(world, users=40)
    for _ in range(30):
        traffic.append(rng, 20)
        world.settle()
    if compacted:
        world.log.compact()
    records = sum(len(log) for log in world.log.changelog)
    world.restart()
    steps(world.pipeline, 1)
    assert world.pipeline.problem == "restoring"
    taken = 1
    while world.pipeline.problem:
        world.pipeline.step(0)
        taken += 1
    assert taken >= records // 2 // 7
    world.finish()
    traffic.check()
    traffic.check_durable()


def test_a_changelog_that_is_compacted_while_it_is_read_misses_nothing(popularity: Bundle, seed: int) -> None:
    rng = random.Random(seed)
    for read in range(0, 60, 7):
        world = World(popularity, max_poll_records=5, **SHORT)
        traffic = Traffic(world, users=25)
        for _ in range(20):
            traffic.append(rng, 10)
            world.settle()
        world.finish()
        world.restart()
        steps(world.pipeline, read)
        world.log.compact()
        world.finish()
        traffic.check()
        assert world.metrics.total("events") == 0


def test_other_partitions_are_served_while_one_is_restored(popularity: Bundle, seed: int) -> None:
    world = World(popularity, partitions=2, max_poll_records=5)
    traffic = Traffic(world, users=200)
    for user in range(1, 200, 2):
        traffic.event(user, 1, "view", 1)
    world.finish()
    (long,) = [number for number, log in enumerate(world.log.changelog) if len(log) > 50]
    world.restart()
    steps(world.pipeline, 4)
    traffic.event(1 - long, 1, "view", 1)
    traffic.event(long, 2, "view", 2)
    lists = len(world.lists())
    steps(world.pipeline, 4)
    assert world.pipeline.problem == "restoring"
    assert world.metrics.registry.get_sample_value("stream_worker_restoring", {"partition": str(long)}) == 1
    assert world.metrics.registry.get_sample_value("stream_worker_restoring", {"partition": str(1 - long)}) == 0
    assert [top.user for top in world.lists()[lists:]] == [traffic.name(1 - long)]
    assert world.log.committed[1 - long] == 1  # its checkpoints go on, too
    world.finish()
    traffic.check()


def test_only_users_who_are_owed_a_list_get_one_after_a_restore(popularity: Bundle) -> None:
    world = World(popularity)
    for number in range(6):
        world.event(f"u{number}", "i1")
    world.finish()
    world.transport.hold_published = True
    for number in (1, 4):
        world.event(f"u{number}", "i2", second=1)
    world.event("u2", "i1")  # a repeat: no list is owed for it
    steps(world.pipeline, 4)
    assert world.log.committed == {0: 9}
    lists = len(world.lists())
    world.restart()
    world.finish()
    assert [(top.user, top.events) for top in world.lists()[lists:]] == [("u1", 2), ("u4", 2)]


def test_a_rebalance_in_the_middle_of_a_restore(popularity: Bundle, seed: int) -> None:
    rng = random.Random(seed)
    world = World(popularity, partitions=4, max_poll_records=5, **SHORT)
    traffic = Traffic(world, users=100)
    traffic.append(rng, 400)
    world.finish()
    world.restart()
    steps(world.pipeline, 3)
    assert world.pipeline.problem == "restoring"
    transport, other, _ = world.worker()
    traffic.append(rng, 40)
    for pipeline in (world.pipeline, other, world.pipeline):
        steps(pipeline, 2)
    assert world.pipeline.problem == other.problem == "restoring"
    transport.close()
    steps(world.pipeline, 2)
    assert len(world.pipeline.owned) == 4
    world.finish()
    traffic.check()
    traffic.check_durable()


def test_what_is_in_flight_for_a_lost_partition_and_fails_is_not_sent_again(popularity: Bundle) -> None:
    world = World(popularity, partitions=2)
    world.finish()
    world.transport.hold_published = True
    for number in range(2):
        world.event(f"u{number}", "i1", partition=number)
        world.log.append(b"{", b"reject", number)
    steps(world.pipeline, 3)
    assert world.transport.in_flight == 4
    other = take_over(world)
    (lost,) = other.owned
    steps(world.pipeline, 1)
    lists, rejects = (len(world.log.topics[topic]) for topic in Topic)
    world.transport.fail_next = 4
    world.transport.hold_published = False
    world.transport.release()
    world.finish(world.pipeline, other)
    assert [top.user for top in world.lists()[lists:]] == [f"u{1 - lost}"]
    assert len(world.log.topics[Topic.REJECTED]) == rejects + 1


def test_workers_that_come_and_go_during_restores_lose_and_double_nothing(popularity: Bundle, seed: int) -> None:
    rng = random.Random(seed)
    world = World(popularity, partitions=6, max_poll_records=5, **SHORT)
    traffic = Traffic(world, users=120)
    traffic.append(rng, 600)
    world.finish()
    world.restart()
    workers: list[tuple[MemoryTransport, Pipeline]] = [(world.transport, world.pipeline)]
    for _ in range(50):
        if len(workers) == 1 or (len(workers) < 4 and rng.random() < 0.5):
            transport, pipeline, _ = world.worker()
            workers.append((transport, pipeline))
        else:
            transport, pipeline = workers.pop(rng.randrange(len(workers)))
            if rng.random() < 0.5:
                pipeline.drain(10)
                transport.close()
            else:
                world.expel(transport)
        traffic.append(rng, 5)
        for _ in range(rng.randrange(8)):
            rng.choice(workers)[1].step(0)
    pipelines = [pipeline for _, pipeline in workers]
    world.finish(*pipelines)
    traffic.check(*pipelines)
    traffic.check_durable()


# -- the lease -------------------------------------------------------------------------------------------------------


class Nap:
    """A clock at which a worker can be stopped while it makes lists, that is between a poll and a publish."""

    def __init__(self) -> None:
        self.meanwhile: Callable[[], None] | None = None

    def __call__(self) -> float:
        if self.meanwhile:
            meanwhile, self.meanwhile = self.meanwhile, None
            time.sleep(SESSION_S * 0.6)  # the gap itself
            meanwhile()
        return START_MS / 1000 + 1


def drowsy(bundle: Bundle, partitions: int = 1) -> tuple[World, Nap]:
    """A world at rest with a user a partition; its worker doubts what it owns after a gap of half of SESSION_S."""
    world = World(bundle, partitions=partitions, session_timeout_s=SESSION_S, delivery_timeout_s=SESSION_S / 2)
    world.log.now = nap = Nap()
    world.restart()
    for number in range(partitions):
        world.event(f"u{number}", "i1", partition=number)
    world.finish()
    return world, nap


def published(world: World) -> list[bytes | None]:
    """The keys of all that was ever published."""
    return [record.key for records in world.log.topics.values() for record in records]


def test_after_a_gap_nothing_is_published_before_the_group_has_answered(popularity: Bundle) -> None:
    world, nap = drowsy(popularity)

    def stall() -> None:
        world.transport.stalled = True

    before = published(world)
    world.event("u0", "i2", second=1)
    nap.meanwhile = stall
    steps(world.pipeline, 3)
    world.event("u1", "i2", second=1)
    world.log.append(b"{", b"u9")
    world.log.append(b'{"user": "u2", "action": "forget"}', b"u2")
    steps(world.pipeline, 10)
    assert published(world) == before
    assert world.pipeline.owned[0].next_offset == 5  # all are folded
    assert world.log.committed == {0: 3}  # but the position does not pass the reject
    world.transport.stalled = False
    world.finish()
    assert sorted(published(world), key=str) == sorted([*before, b"u0", b"u1", b"u2", b"u9"], key=str)
    assert world.newest()["u0"].events == 2
    assert world.log.committed == {0: 5}


def test_a_list_that_was_made_before_a_gap_is_dropped_with_its_partition(popularity: Bundle) -> None:
    world, nap = drowsy(popularity, partitions=2)
    others: list[Pipeline] = []
    seen: list[int] = []

    def lose_one() -> None:
        others.append(take_over(world))
        seen.append(len(world.lists()))

    for number in range(2):
        world.event(f"u{number}", "i2", partition=number, second=1)
    nap.meanwhile = lose_one
    steps(world.pipeline, 10)
    (lost,) = others[0].owned
    assert set(world.pipeline.owned) == {1 - lost}
    assert [top.user for top in world.lists()[2 : seen[0]]] == [f"u{lost}"]
    assert [top.user for top in world.lists()[seen[0] :]] == [f"u{1 - lost}"]
    world.finish(world.pipeline, *others)
    assert world.log.committed == {0: 2, 1: 2}
    assert {top.events for top in world.newest().values()} == {2}


def test_what_waits_for_the_group_to_answer_is_dropped_with_its_partition(popularity: Bundle) -> None:
    world, nap = drowsy(popularity, partitions=2)

    def stall() -> None:
        world.transport.stalled = True

    names = (b"gone%d" % number for number in itertools.count())
    gone = {world.transport.home(name): name for name in itertools.islice(names, 20)}  # a user of each partition
    world.event("u0", "i2", second=1)
    nap.meanwhile = stall
    steps(world.pipeline, 1)
    for number in range(2):
        world.event(f"u{number}", "i3", partition=number, second=2)
        world.log.append(b"{", b"reject", number)
        world.log.append(b'{"user": "%s", "action": "forget"}' % gone[number], gone[number], number)
    steps(world.pipeline, 5)
    assert [owned.next_offset for owned in world.pipeline.owned.values()] == [5, 4]
    assert len(published(world)) == 2
    other = take_over(world)
    (lost,) = other.owned
    kept = 1 - lost
    before = published(world)
    world.transport.stalled = False
    steps(world.pipeline, 10)
    assert len(published(world)) == len(before) + 3
    assert world.log.topics[Topic.REJECTED][-1].key == b"reject"
    assert dict(world.log.topics[Topic.REJECTED][-1].headers)["__connect.errors.partition"] == b"%d" % kept
    assert {record.key for record in world.log.topics[Topic.RECOMMENDATIONS][-2:]} == {
        b"u%d" % kept,
        gone[kept],
    }
    world.finish(world.pipeline, other)
    assert world.log.committed == {0: 5, 1: 4}


def test_a_worker_that_was_expelled_writes_and_publishes_nothing_until_it_is_a_member_again(
    popularity: Bundle,
) -> None:
    world, nap = drowsy(popularity, partitions=2)
    others: list[Pipeline] = []

    def expel() -> None:
        _, other, _ = world.worker()
        others.append(other)
        world.expel(world.transport)

    for number in range(2):
        world.event(f"u{number}", "i2", partition=number, second=1)
    nap.meanwhile = expel
    steps(world.pipeline, 1)
    changelog, lists = [len(log) for log in world.log.changelog], len(world.lists())
    steps(world.pipeline, 10)
    world.event("u0", "i3", partition=0, second=2)
    steps(world.pipeline, 10)
    assert [len(log) for log in world.log.changelog] == changelog
    assert len(world.lists()) == lists
    assert world.metrics.total("checkpoint_failures") > 0
    world.finish(*others)
    assert {top.user: top.events for top in world.newest().values()} == {"u0": 3, "u1": 2}
    lists = len(world.lists())
    world.transport.reassign(set())  # it hears that it has lost all
    world.transport.open()
    world.finish(world.pipeline, *others)
    assert len(world.pipeline.owned) == 1
    assert len(world.lists()) == lists


def test_a_checkpoint_that_the_group_refused_puts_the_lists_in_doubt(popularity: Bundle) -> None:
    world = World(popularity)
    world.event("u0", "i1")
    world.finish()
    world.transport.fail_checkpoints = Cause.MEMBERSHIP
    world.transport.hold_published = True
    world.event("u0", "i2", second=1)
    steps(world.pipeline, 1)
    world.transport.stalled = True
    steps(world.pipeline, 1)  # learns of the refusal
    in_flight = world.transport.in_flight
    world.event("u1", "i1")
    steps(world.pipeline, 3)
    assert world.transport.in_flight == in_flight
    world.transport.stalled = False
    world.transport.fail_checkpoints = None
    world.transport.hold_published = False
    world.transport.release()
    world.finish()
    assert set(world.newest()) == {"u0", "u1"}


def test_a_lease_holds_while_polls_come_in_time_and_after_a_gap_from_the_next_answer() -> None:
    log = MemoryLog()
    transport = MemoryTransport(log)
    transport.open()
    lease = Lease(transport, SESSION_S)
    lease.renew()
    assert lease.valid
    time.sleep(SESSION_S * 0.6)  # the gap itself
    assert not lease.valid
    transport.stalled = True
    lease.renew()
    assert not lease.valid
    transport.stalled = False
    lease.renew()
    assert lease.valid
    transport.stalled = True  # without a gap, silence is no reason
    lease.renew()
    assert lease.valid
    lease.doubt()
    assert not lease.valid
