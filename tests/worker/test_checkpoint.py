"""Checkpoints: whatever fails while they are written, the state stays an exact function of the log."""

import random
from pathlib import Path
from typing import Any

import pytest

from stream_worker.bundle import Bundle
from stream_worker.changelog import POSITION_KEY
from stream_worker.errors import DataError, FencedError
from stream_worker.metrics import STAGES
from stream_worker.transports.base import Cause, Topic
from stream_worker.transports.memory import Crash
from tests.worker.crashes import DURING, CrashingBundle, CrashingWorld
from tests.worker.traffic import Traffic
from tests.worker.world import World, exact

SHORT = {"history_length": 4, "excluded_length": 2, "max_reject_share": 1}
FORGET = b'{"user": "u1", "action": "forget"}'


@pytest.fixture(scope="module")
def crashing(models: dict[str, Path]) -> CrashingBundle:
    """The sequence model, whose inference can crash."""
    bundle = CrashingBundle(models["sasrec"])
    bundle.warm_up()
    return bundle


def keys(world: World) -> list[bytes | None]:
    """What was written to the changelog, positions left out."""
    return [record.key for record in world.log.changelog[0] if record.key != POSITION_KEY]


def work(world: World, traffic: Traffic, rng: random.Random) -> None:
    """Steps, with records coming in, and some failures."""
    for _ in range(200):
        traffic.append(rng, rng.randrange(12))
        world.transport.fail_next = rng.choice([0, 0, 0, 1, 3])
        world.transport.lose_answers = rng.random() < 0.1
        world.transport.hold_published = rng.random() < 0.3
        world.pipeline.step(0)


def steps(world: World, count: int) -> None:
    """So many steps."""
    for _ in range(count):
        world.pipeline.step(0)


@pytest.mark.parametrize("place", [*DURING, *(f"after {verb}" for verb in STAGES)])
def test_a_crash_in_any_verb_loses_and_doubles_nothing(crashing: CrashingBundle, place: str, seed: int) -> None:
    rng = random.Random(f"{seed} {place}")
    for _ in range(3):
        polled = rng.choice([1, 3, 20])
        world = CrashingWorld(
            crashing, partitions=2, max_poll_records=polled, event_decoder="tests.worker.crashes:decode", **SHORT
        )
        traffic = Traffic(world)
        for _ in range(4):
            world.pipeline.step(0)
            world.arm(place, rng.randrange(1, 7))
            with pytest.raises(Crash):
                work(world, traffic, rng)
            if rng.random() < 0.3:
                world.log.compact()
            world.restart()
        world.finish()
        traffic.check()
        traffic.check_lists()
        traffic.check_durable()


@pytest.mark.parametrize("cause", Cause)
def test_a_checkpoint_that_failed_leaves_everything_to_be_written(popularity: Bundle, cause: Cause) -> None:
    world = World(popularity)
    world.event("u1", "i1")
    world.event("u2", "i1")
    world.finish()
    world.log.append(FORGET, b"u1")
    world.event("u2", "i2", second=1)
    world.event("u3", "i3")
    world.transport.fail_checkpoints = cause
    steps(world, 4)
    assert world.log.committed == {0: 2}
    assert world.metrics.registry.get_sample_value("stream_worker_checkpoint_failures_total", {"cause": cause.value})
    world.transport.fail_checkpoints = None
    world.finish()
    before = exact(world.pipeline.owned[0].state, world.pipeline.actions)
    assert set(before) == {"u2", "u3"}
    world.restart()
    world.finish()
    assert exact(world.pipeline.owned[0].state, world.pipeline.actions) == before
    assert world.metrics.total("events") == 0


def test_a_lost_answer_doubles_nothing(popularity: Bundle, seed: int) -> None:
    rng = random.Random(seed)
    world = World(popularity, partitions=2, max_poll_records=7, **SHORT)
    traffic = Traffic(world)
    for number in range(60):
        traffic.append(rng, 5)
        world.transport.lose_answers = rng.random() < 0.5
        world.pipeline.step(0)
        if number % 20 == 19:
            world.restart()
    world.transport.lose_answers = False
    world.finish()
    traffic.check()
    traffic.check_durable()


def test_a_user_who_changes_after_the_copy_stays_to_be_written(popularity: Bundle) -> None:
    world = World(popularity)
    world.finish()
    world.transport.delay_checkpoints = True
    world.event("u1", "i1")
    world.event("u2", "i1")
    world.pipeline.step(0)  # folded and copied
    world.event("u1", "i2", second=1)
    world.pipeline.step(0)
    assert {"u1"} <= world.pipeline.owned[0].state.changed
    world.transport.delay_checkpoints = False
    world.transport.hold_published = True  # lists would change the users, too
    world.pipeline.step(0)
    world.pipeline.step(0)
    assert world.log.committed == {0: 3}
    world.restart()
    world.finish()
    assert exact(world.pipeline.owned[0].state, world.pipeline.actions)["u1"]["events"] == 2


def test_a_user_who_is_forgotten_or_comes_back_after_the_copy_is_written_as_they_are(popularity: Bundle) -> None:
    world = World(popularity)
    world.event("u1", "i1")
    world.event("u2", "i1")
    world.finish()
    world.transport.delay_checkpoints = True
    world.log.append(FORGET, b"u1")
    world.event("u2", "i2", second=1)
    world.pipeline.step(0)  # copied: u1 gone, u2 with two events
    world.event("u1", "i3", second=2)
    world.log.append(b'{"user": "u2", "action": "forget"}', b"u2")
    world.pipeline.step(0)
    world.transport.delay_checkpoints = False
    world.finish()
    world.restart()
    world.finish()
    assert world.metrics.total("events") == 0
    assert set(exact(world.pipeline.owned[0].state, world.pipeline.actions)) == {"u1"}


def test_many_changed_users_start_a_checkpoint_before_its_time(popularity: Bundle) -> None:
    world = World(popularity, checkpoint_interval_s=3600, max_dirty_users=10, max_poll_records=5)
    for number in range(9):
        world.event(f"u{number}", "i1")
    steps(world, 6)
    assert world.log.committed == {}
    world.event("u9", "i1")
    steps(world, 3)
    assert world.log.committed == {0: 10}


def test_while_a_checkpoint_is_under_way_changed_users_are_bounded(popularity: Bundle) -> None:
    world = World(popularity, checkpoint_interval_s=3600, max_dirty_users=10, max_poll_records=5)
    for number in range(100):
        world.event(f"u{number}", "i1")
    world.transport.delay_checkpoints = True
    for _ in range(40):
        world.pipeline.step(0)
        assert len(world.pipeline.owned[0].state.changed) < 10 + 2 * 5
    assert world.pipeline.owned[0].next_offset <= 2 * 10 + 5
    world.transport.delay_checkpoints = False
    steps(world, 60)
    assert len(world.pipeline.owned[0].state) == 100


def test_nothing_changed_writes_nothing(popularity: Bundle) -> None:
    world = World(popularity)
    world.event("u1", "i1")
    world.finish()
    written = list(world.log.changelog[0])
    steps(world, 20)
    assert world.log.changelog[0] == written


def test_only_what_changed_is_written(popularity: Bundle) -> None:
    world = World(popularity)
    for number in range(50):
        world.event(f"u{number}", "i1")
    world.finish()
    written = len(keys(world))
    world.event("u7", "i2", second=1)
    world.finish()
    assert set(keys(world)[written:]) == {b"u7"}


def test_a_position_moves_without_a_user_that_changed(popularity: Bundle) -> None:
    world = World(popularity)
    world.event("u1", "i1")
    world.finish()
    written = len(keys(world))
    world.event("u1", "i1")  # a repeat
    world.log.append(b"{", b"u1")
    world.finish()
    assert world.log.committed == {0: 3}
    assert len(keys(world)) == written


def test_a_broker_that_refuses_again_and_again_ends_the_worker(popularity: Bundle) -> None:
    world = World(popularity)
    world.event("u1", "i1")
    world.transport.fail_checkpoints = Cause.REFUSED
    with pytest.raises(FencedError, match="has refused 5 checkpoints one after the other: scripted") as caught:
        steps(world, 20)
    assert caught.value.exit_code == 5
    assert world.metrics.total("checkpoint_failures") == 5


@pytest.mark.parametrize("between", [None, Cause.BROKER, Cause.MEMBERSHIP])
def test_refusals_that_are_interrupted_are_counted_anew(popularity: Bundle, between: Cause | None) -> None:
    world = World(popularity)
    for number in range(6):
        world.event(f"u{number}", "i1")
        world.transport.fail_checkpoints = Cause.REFUSED
        failures = world.metrics.total("checkpoint_failures")
        while world.metrics.total("checkpoint_failures") < failures + 4:
            world.pipeline.step(0)
        world.transport.fail_checkpoints = between
        world.pipeline.step(0)
        world.pipeline.step(0)
    world.transport.fail_checkpoints = None
    world.finish()
    assert world.log.committed == {0: 6}


@pytest.mark.parametrize("cause", [Cause.BROKER, Cause.REFUSED])
def test_while_checkpoints_cannot_be_written_no_events_are_taken_and_the_worker_says_so(
    popularity: Bundle, cause: Cause
) -> None:
    world = World(popularity)
    world.event("u1", "i1")
    world.finish()
    world.event("u2", "i1")
    world.transport.fail_checkpoints = cause
    steps(world, 3)
    assert world.pipeline.problem == "checkpoints are not written: scripted"
    world.event("u3", "i1")
    world.pipeline.step(0)
    assert world.pipeline.owned[0].next_offset == 2
    world.transport.fail_checkpoints = None
    world.finish()
    assert world.pipeline.problem is None
    assert set(world.newest()) == {"u1", "u2", "u3"}
    assert world.log.committed == {0: 3}


def test_a_broker_that_is_away_ends_no_worker_however_long(popularity: Bundle) -> None:
    world = World(popularity)
    for number in range(50):
        world.event(f"u{number}", "i1")
    world.finish()
    for number in range(50):
        world.event(f"u{number}", "i2", second=1)
    world.transport.fail_checkpoints = Cause.BROKER
    world.transport.away = True
    steps(world, 500)
    assert world.log.committed == {0: 50}
    assert world.pipeline.problem
    world.transport.away = False
    world.transport.fail_checkpoints = None
    world.finish()
    assert world.pipeline.problem is None
    assert {top.events for top in world.newest().values()} == {2}


def test_a_checkpoint_that_a_rebalance_overtook_is_made_again(popularity: Bundle) -> None:
    world = World(popularity, partitions=2)
    traffic = Traffic(world)
    traffic.event(0, 1, "view", 1)
    traffic.event(1, 1, "view", 1)
    world.transport.delay_checkpoints = True
    world.pipeline.step(0)
    world.pipeline.step(0)  # one is under way, of both partitions
    _, other, metrics = world.worker()
    world.transport.delay_checkpoints = False
    world.pipeline.step(0)
    assert world.log.committed == {}
    assert world.metrics.total("checkpoint_failures") == 1
    world.finish(world.pipeline, other)
    traffic.check(world.pipeline, other)
    assert metrics.total("events") == 1  # the other folded its partition itself


def test_a_forgotten_user_gets_a_tombstone_on_the_changelog(popularity: Bundle) -> None:
    world = World(popularity)
    world.event("u1", "i1")
    world.event("u2", "i1")
    world.finish()
    world.log.append(FORGET, b"u1")
    world.finish()
    world.log.compact()
    (one,) = [record for record in world.log.changelog[0] if record.key == b"u1"]
    assert one.value is None
    world.restart()
    world.finish()
    assert set(exact(world.pipeline.owned[0].state, world.pipeline.actions)) == {"u2"}


def test_a_user_whose_tombstone_was_not_acknowledged_is_forgotten_again_after_a_crash(popularity: Bundle) -> None:
    world = World(popularity, partitions=3)
    traffic = Traffic(world, users=6)
    for user in range(6):
        traffic.event(user, 1, "view", 1)
    world.finish()
    world.transport.hold_published = True
    for user in range(6):
        traffic.forget(user)
    steps(world, 8)
    assert all(not len(owned.state) for owned in world.pipeline.owned.values())
    assert world.log.committed == {0: 2, 1: 2, 2: 2}
    world.restart()
    world.finish()
    traffic.check()


def test_a_replayed_forget_does_not_erase_a_user_who_came_back(popularity: Bundle) -> None:
    world = World(popularity)
    traffic = Traffic(world)
    traffic.event(1, 1, "view", 1)
    world.finish()
    world.transport.hold_published = True
    traffic.reject(2, b"{")  # holds the position back
    traffic.event(1, 2, "view", 2)
    traffic.forget(1)
    traffic.event(1, 3, "view", 3)
    traffic.event(1, 4, "view", 4)
    steps(world, 5)
    assert world.log.committed == {0: 1}
    world.restart()
    world.finish()
    traffic.check()
    assert world.metrics.total("events") == 0  # all of them are in the state
    assert world.metrics.total("forgotten") == 0
    assert world.log.topics[Topic.REJECTED][-1].value == b"{"


def test_a_state_outlives_the_codes_of_its_actions(popularity: Bundle) -> None:
    world = World(popularity)
    for second, action in enumerate(["poke", "purchase", "ünïcode ♥", "view", "hide", "poke"]):
        world.event("u1", f"i{second}", second=second, action=action)
    world.finish()
    before = exact(world.pipeline.owned[0].state, world.pipeline.actions)
    world.restart()
    world.pipeline.actions.code("wink")  # so that every code is another one
    world.pipeline.actions.code("view")
    world.finish()
    assert exact(world.pipeline.owned[0].state, world.pipeline.actions) == before
    assert world.pipeline.actions.names.index("purchase") != 1
    world.event("u1", "i9", second=9, action="wave")
    world.finish()
    newest = exact(world.pipeline.owned[0].state, world.pipeline.actions)["u1"]
    assert newest["history"][:-1] == before["u1"]["history"]
    assert newest["excluded"] == before["u1"]["excluded"]


@pytest.mark.parametrize("shorter", [{"history_length": 3}, {"excluded_length": 1}])
def test_histories_longer_than_the_settings_are_refused(popularity: Bundle, shorter: dict[str, Any]) -> None:
    world = World(popularity, **SHORT)
    for second in range(6):
        world.event("u1", f"i{second}", second=second, action="purchase")
    world.finish()
    world.settings = world.settings.model_copy(update=shorter)
    world.restart()
    with pytest.raises(DataError, match="--history-length 4 --excluded-length 2 or more") as caught:
        world.finish()
    assert "stream-worker-state-0" in str(caught.value)
    assert caught.value.exit_code == 4
