"""A backlog costs the fold only, and never delays a fresh click (guarantee 5)."""

import random
from typing import Any

import msgspec
import pytest

from stream_worker.bundle import Bundle
from stream_worker.marked import FEW_LATE, Mark, Marked
from stream_worker.pipeline import USERS_PER_STEP
from tests.worker.world import START_MS, World, exact

HOUR_MS = 3_600_000
LATE, FRESH = 0, 1  # partitions


def old(world: World, user: str, number: int) -> None:
    """An event that came an hour ago, of an item of its own."""
    value = msgspec.json.encode({"user": user, "item": f"i{number}", "time": START_MS - HOUR_MS})
    world.log.append(value, user.encode(), LATE, timestamp=START_MS - HOUR_MS + number)


def behind(bundle: Bundle, events: int, users: int, **changes: Any) -> World:
    """A worker with a backlog in one of two partitions."""
    world = World(bundle, partitions=2, max_poll_records=500, **changes)
    for number in range(events):
        old(world, f"late{number % users}", number)
    return world


def lists_of(world: World, prefix: str) -> list[str]:
    return [top.user for top in world.lists() if top.user.startswith(prefix)]


def test_a_backlog_is_folded_with_few_lists_and_then_each_touched_user_gets_one(popularity: Bundle) -> None:
    events, users = 6000, 2000
    world = behind(popularity, events, users)
    world.pipeline.step(0)
    world.pipeline.step(0)  # the first records tell that the partition is behind
    assert world.pipeline.owned[LATE].catching_up
    steps = 0
    while world.pipeline.owned[LATE].catching_up:
        world.pipeline.step(0)
        steps += 1
    assert len(world.lists()) <= USERS_PER_STEP + FEW_LATE * (steps + 1)
    world.settle()
    newest = world.newest()
    assert len(newest) == users
    assert all(top.events == events // users for top in newest.values())
    assert len(world.lists()) < 1.5 * users
    labels = {"catching_up": "true"}
    assert world.metrics.registry.get_sample_value("stream_worker_event_to_list_seconds_count", labels)


def test_a_fresh_click_does_not_wait_behind_a_backlog(popularity: Bundle) -> None:
    world = behind(popularity, 20_000, 5000)
    for _ in range(3):
        world.pipeline.step(0)
    for number in range(20):
        world.event(f"fresh{number}", "i1", FRESH)
        world.pipeline.step(0)
        assert lists_of(world, "fresh")[-1] == f"fresh{number}", "in the very step that polled it"
    assert world.pipeline.owned[LATE].catching_up


def test_fresh_events_are_polled_first_however_many_wait_elsewhere(popularity: Bundle) -> None:
    world = behind(popularity, 20_000, 5000)
    for _ in range(3):
        world.pipeline.step(0)
    for number in range(400):
        world.event(f"fresh{number}", "i1", FRESH)
    before = world.pipeline.owned[LATE].next_offset
    world.pipeline.step(0)
    assert world.pipeline.owned[FRESH].next_offset == 400
    assert world.pipeline.owned[LATE].next_offset == before + 100


def test_users_of_a_partition_that_never_catches_up_still_get_lists(popularity: Bundle) -> None:
    world = behind(popularity, 3000, 100)
    number = 3000
    for _ in range(40):
        for _ in range(600):  # more than a step takes
            old(world, f"late{number % 100}", number)
            number += 1
        for fresh in range(USERS_PER_STEP):
            world.event(f"fresh{fresh}", f"i{number}", FRESH)
        world.pipeline.step(0)
    assert world.pipeline.owned[LATE].catching_up
    assert set(lists_of(world, "late")) == {f"late{one}" for one in range(100)}


def test_a_user_of_a_backlog_who_clicks_when_it_is_folded_does_not_wait_for_it() -> None:
    marked = Marked()
    for number in range(100):
        assert not marked.mark(LATE, [f"u{number}"], [1], True)
    assert marked.mark(LATE, ["u99"], [9], False)
    key, mark = marked.take(5, sparing=True)[0]
    assert key == (LATE, "u99")
    assert mark == Mark(1, True), "the list is as late as the oldest event it answers"


def test_a_crash_in_the_middle_of_a_backlog_changes_nothing(popularity: Bundle, seed: int) -> None:
    rng = random.Random(seed)
    world = behind(popularity, 5000, 700)
    straight = behind(popularity, 5000, 700)
    straight.settle()
    for _ in range(4):
        for _ in range(rng.randrange(1, 6)):
            world.pipeline.step(0)
        world.restart()
    world.settle()
    state, expected = (one.pipeline.owned[LATE].state for one in (world, straight))
    assert exact(state, world.pipeline.actions) == exact(expected, straight.pipeline.actions)
    assert {user: top.offset for user, top in world.newest().items()} == {
        user: top.offset for user, top in straight.newest().items()
    }


@pytest.mark.parametrize(("fresh", "late", "sparing", "expected"), [
    (0, 300, True, (0, FEW_LATE)),
    (300, 300, True, (204, 52)),  # a fifth
    (80, 300, True, (80, 20)),  # a fifth of what is served
    (300, 3, True, (253, 3)),
    (300, 300, False, (204, 52)),
    (100, 300, False, (100, 156)),  # the room that fresh ones leave
    (100, 0, False, (100, 0)),
])  # fmt: skip
def test_late_users_get_a_fifth_and_when_no_more_are_coming_what_is_left(
    fresh: int, late: int, sparing: bool, expected: tuple[int, int]
) -> None:
    marked = Marked()
    for number in range(fresh):
        marked.mark(FRESH, [f"f{number}"], [1], False)
    for number in range(late):
        marked.mark(LATE, [f"l{number}"], [1], True)
    taken = marked.take(USERS_PER_STEP, sparing)
    kinds = [key[0] for key, _ in taken]
    assert (kinds.count(FRESH), kinds.count(LATE)) == expected
    assert len(marked) == fresh + late - len(taken)


def test_a_list_that_failed_keeps_the_age_of_the_oldest_event() -> None:
    marked = Marked()
    marked.mark(0, ["u"], [7], False)
    marked.put_back((0, "u"), Mark(3, False))
    ((_, mark),) = marked.take(1, False)
    assert mark.oldest_timestamp == 3
