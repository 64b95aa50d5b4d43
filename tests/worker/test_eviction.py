"""Memory is bounded, as a function of the log (guarantee 6)."""

import random
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np
import pytest

from stream_worker.bundle import Bundle
from stream_worker.messages import Event, item_hash
from stream_worker.state import Actions, Partition
from stream_worker.transports.base import Change, Topic
from stream_worker.transports.memory import Crash, MemoryTransport
from tests.worker.oracle import expected, fold_log
from tests.worker.world import START_MS, World, exact, fold_one

MINUTE_MS = 60_000
MOST, TTL_S = 7, 600


def some_log(rng: random.Random, count: int) -> list[dict[str, Any]]:
    """Events that come over hours, with silences; few of many users come back, and some records are no events."""
    log, received = [], START_MS - 10 * 3_600_000
    for number in range(count):
        received += rng.choice([0, 1000, 5000, MINUTE_MS, 5 * MINUTE_MS]) if rng.random() < 0.5 else 0
        log.append(
            {
                "user": f"u{rng.randrange(25)}",
                "item": f"i{number}",
                "action": rng.choice(["view"] * 14 + ["purchase", "forget", "reject", "reject"]),
                "time": received // 1000 * 1000,
                "received": received,
            }
        )
    return log


def append(world: World, event: dict[str, Any]) -> None:
    value = {name: event[name] for name in ("user", "item", "action", "time")}
    encoded = b"{" if event["action"] == "reject" else msgspec.json.encode(value)
    world.log.append(encoded, event["user"].encode(), timestamp=event["received"])


def assert_exact(world: World, log: list[dict[str, Any]], bounds: dict[str, Any]) -> None:
    """The state and the newest lists are what a plain fold says."""
    events = [None if event["action"] == "reject" else event for event in log]
    oracle = fold_log(events, 64, 32, world.settings.excluding, **bounds)
    state = exact(world.pipeline.owned[0].state, world.pipeline.actions)
    assert state == {name: expected(user) for name, user in oracle.items()}
    values = {record.key.decode(): record.value for record in world.log.topics[Topic.RECOMMENDATIONS] if record.key}
    listed = {user: top.offset for user, top in world.newest().items() if values[user] is not None}
    assert {user: listed[user] for user in oracle} == {user: one.applied for user, one in oracle.items()}
    if bounds.get("ttl_ms"):
        assert bounds.get("max_users") or listed.keys() == oracle.keys(), "the lists of those who expired are gone"


@pytest.mark.parametrize(
    "bounds", [{"max_users": MOST}, {"ttl_ms": TTL_S * 1000}, {"max_users": MOST, "ttl_ms": TTL_S * 1000}]
)
def test_eviction_is_part_of_the_fold_so_a_crash_changes_nothing(
    bounds: dict[str, Any], popularity: Bundle, seed: int
) -> None:
    rng = random.Random(f"{seed} {bounds}")
    log = some_log(rng, 300)
    world = World(
        popularity,
        max_poll_records=20,
        max_users_per_partition=bounds.get("max_users", 1000),
        user_ttl_s=TTL_S if "ttl_ms" in bounds else None,
    )
    crashes = 0
    for event in log:
        append(world, event)
    while world.pipeline.owned.get(0) is None or world.pipeline.owned[0].next_offset < len(log):
        if crashes < 3 or rng.random() < 0.3:
            nth = 1 if crashes < 3 else rng.randrange(1, 6)
            world.transport.crash_at(rng.choice(["poll", "publish", "write", "commit", "confirm"]), nth)
        world.transport.hold_published = rng.random() < 0.3
        world.transport.fail_next = rng.choice([0, 0, 3])
        try:
            world.pipeline.step(0)
        except Crash:
            crashes += 1
            world.restart()
    world.transport.hold_published = False
    world.transport.fail_next = 0
    world.transport.crash_at("nothing")
    world.transport.release()
    world.settle()
    assert_exact(world, log, bounds)
    world.restart()
    world.settle()
    assert_exact(world, log, bounds)
    assert crashes >= 3


def test_evicted_users_leave_the_changelog(popularity: Bundle) -> None:
    world = World(popularity, max_users_per_partition=10)
    for number in range(100):
        world.event(f"u{number}", "i1")
    world.settle()
    world.log.compact()
    kept = {record.key for record in world.log.changelog[0] if record.value is not None}
    assert kept == {f"u{number}".encode() for number in range(90, 100)} | {b"\0position"}
    assert world.metrics.registry.get_sample_value("stream_worker_evicted_total", {"reason": "room"}) == 90


def test_an_expired_users_list_is_erased_even_if_the_worker_dies_before_that_is_acknowledged(
    popularity: Bundle,
) -> None:
    world = World(popularity, user_ttl_s=600)
    for minute, user in enumerate(["u1", "u2", "u3"]):
        stamp = START_MS - 3_600_000 + minute * 20 * MINUTE_MS
        world.log.append(msgspec.json.encode({"user": user, "item": "i1"}), user.encode(), timestamp=stamp)
        if user == "u3":
            world.transport.hold_published = True
        world.settle()
    world.restart()
    world.settle()
    values = {record.key: record.value for record in world.log.topics[Topic.RECOMMENDATIONS]}
    assert (values[b"u1"], values[b"u2"]) == (None, None)
    assert values[b"u3"] is not None
    assert set(exact(world.pipeline.owned[0].state, world.pipeline.actions)) == {"u3"}


def test_when_everybody_expires_at_once_no_bound_is_passed(popularity: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(popularity, user_ttl_s=600, max_in_flight=10, max_dirty_users=50)
    for number in range(500):
        value = msgspec.json.encode({"user": f"u{number}", "item": "i1"})
        world.log.append(value, b"u%d" % number, timestamp=START_MS - 3_600_000)
    world.finish()
    written: list[int] = []
    checkpoint = MemoryTransport.checkpoint

    def note(transport: MemoryTransport, changes: Iterable[Change], positions: Mapping[int, int]) -> None:
        held = list(changes)
        written.append(len(held))
        checkpoint(transport, held, positions)

    monkeypatch.setattr(MemoryTransport, "checkpoint", note)
    world.transport.hold_published = True
    world.event("new", "i1")
    world.pipeline.step(0)
    world.pipeline.step(0)
    assert world.transport.in_flight == 10
    world.transport.hold_published = False
    world.transport.release()
    world.finish()
    assert max(written) <= 50 + 10 + 1  # and the position
    values = {record.key: record.value for record in world.log.topics[Topic.RECOMMENDATIONS]}
    assert sum(value is None for value in values.values()) == 500
    assert set(exact(world.pipeline.owned[0].state, world.pipeline.actions)) == {"new"}
    world.restart()
    world.settle()
    assert set(exact(world.pipeline.owned[0].state, world.pipeline.actions)) == {"new"}


def test_a_lower_bound_is_reached_with_the_next_new_users_ten_for_each(popularity: Bundle) -> None:
    world = World(popularity)
    for number in range(50):
        world.event(f"u{number}", "i1")
    world.settle()
    world.settings = world.settings.model_copy(update={"max_users_per_partition": 5})
    world.restart()
    world.settle()
    lengths = []
    for number in range(5):
        world.event(f"new{number}", "i1")
        world.settle()
        lengths.append(len(world.pipeline.owned[0].state))
    assert lengths == [41, 32, 23, 14, 5]
    assert set(exact(world.pipeline.owned[0].state, world.pipeline.actions)) == {f"new{number}" for number in range(5)}


def test_memory_stays_flat_however_many_distinct_users_come() -> None:
    state, actions = Partition(0, 64, 32, 20, max_users=20_000), Actions()
    view = actions.code("view")

    def burst(start: int, count: int) -> int:
        for number in range(start, start + count):
            fold_one(
                state, Event(f"user-{number}", "i", "view", START_MS), item_hash("i"), view, False, number, START_MS
            )
            state.evicted.clear()
            state.changed.clear()
        return state.nbytes

    full = burst(0, 50_000)
    assert burst(50_000, 200_000) == full
    assert len(state) == 20_000
    assert len(state.users) <= 20_000
    offsets = state.applied_offset[: len(state.users)]
    assert np.array_equal(np.sort(offsets), np.arange(230_000, 250_000)), "the longest silent ones went"
