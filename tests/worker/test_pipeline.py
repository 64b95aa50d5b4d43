"""One worker on a log in memory: events to lists, and nothing lost."""

import random
from typing import Any

import msgspec
import numpy as np
import pytest

from stream_worker.batch import Feeds
from stream_worker.bundle import Bundle
from stream_worker.transports.base import Topic
from tests.worker.world import START_MS, World, exact


def test_an_event_becomes_a_list(sasrec: Bundle) -> None:
    world = World(sasrec)
    world.event("u1", "i7", second=3)
    world.settle()
    (top,) = world.lists()
    assert (top.user, top.events, top.partition, top.offset, top.epoch) == ("u1", 1, 0, 0, 0)
    assert len(set(top.items)) == 5
    assert "i7" not in top.items
    assert top.scores == sorted(top.scores, reverse=True)
    assert top.because == ["i7"] * 5
    assert top.event_time == START_MS + 3000
    assert top.received_time == START_MS + 1000
    assert top.published_time == START_MS + 1000
    assert top.model == sasrec.manifest.model
    (record,) = world.log.topics[Topic.RECOMMENDATIONS]
    assert record.key == b"u1"
    assert world.log.committed == {0: 1}


def test_a_list_equals_the_graph_run_by_hand(sasrec: Bundle) -> None:
    world = World(sasrec)
    for second, item in enumerate(["i1", "i2", "unknown", "i3"]):
        world.event("u1", item, second=second)
    world.settle()
    (top,) = world.lists()
    history = np.array([[1, 2, 3]], np.int32)
    feeds: Feeds = {
        "history_items": history,
        "history_actions": np.ones((1, 3), np.uint8),
        "history_times": np.array([[0, 1, 3]]) * 1000 + START_MS,
        "now": np.array([START_MS + 3000]),
        "excluded_items": history,
    }
    outputs = sasrec.infer(feeds)
    assert top.items == [f"i{row}" for row in outputs["items"][0]]
    assert top.scores == pytest.approx(outputs["scores"][0], abs=1e-4)


def test_events_of_one_poll_share_a_list(sasrec: Bundle) -> None:
    world = World(sasrec)
    for second in range(6):
        world.event("u1", f"i{second}", second=second)
    world.settle()
    assert [top.events for top in world.lists()] == [6]
    assert world.metrics.total("coalesced") == 5


def test_a_list_does_not_depend_on_who_shares_the_batch(sasrec: Bundle, seed: int) -> None:
    rng = random.Random(seed)
    users = {f"u{number}": [f"i{rng.randrange(60)}" for _ in range(rng.randrange(1, 14))] for number in range(50)}
    together = World(sasrec, partitions=3)
    for number, (user, items) in enumerate(users.items()):
        for second, item in enumerate(items):
            together.event(user, item, partition=number % 3, second=second)
    together.settle()
    newest = together.newest()
    assert set(newest) == set(users)
    for user in rng.sample(sorted(users), 8):
        alone = World(sasrec)
        for second, item in enumerate(users[user]):
            alone.event(user, item, second=second)
        alone.settle()
        (one,) = alone.lists()
        assert one.items == newest[user].items
        assert one.scores == pytest.approx(newest[user].scores, abs=1e-4)


def test_unknown_items_and_actions_are_folded_counted_and_left_out(sasrec: Bundle) -> None:
    world = World(sasrec)
    world.event("u1", "nowhere", second=0)
    world.event("u1", "i3", second=1, action="poke")
    world.settle()
    (top,) = world.lists()
    assert top.events == 2
    assert len(top.items) == 5
    assert top.because == [None] * 5
    assert world.metrics.registry.get_sample_value("stream_worker_unknown_total", {"kind": "item"}) == 1
    assert world.metrics.registry.get_sample_value("stream_worker_unknown_total", {"kind": "action"}) == 1


def test_settings_shorten_the_list_and_let_seen_items_back_in(popularity: Bundle) -> None:
    def items(**changes: Any) -> list[str]:
        world = World(popularity, **changes)
        first = f"i{popularity.default_list[0]}"
        world.event("u1", first)
        world.settle()
        assert (first in world.lists()[0].items) == (changes.get("exclude_seen") is False)
        return world.lists()[0].items

    assert len(items()) == 5
    assert len(items(list_length=3)) == 3
    items(exclude_seen=False)


def test_an_excluding_action_excludes_for_good(popularity: Bundle) -> None:
    world = World(popularity, history_length=1, exclude_seen=False)
    first = f"i{popularity.default_list[0]}"
    world.event("u1", first, action="purchase", second=0)
    world.event("u1", "i50", second=1)
    world.event("u1", "i51", second=2)
    world.settle()
    assert first not in world.lists()[-1].items


def test_rejected_events_keep_their_bytes_and_say_why(sasrec: Bundle) -> None:
    world = World(sasrec)
    world.log.append(b"{nonsense", b"u1")
    world.log.append(b"\xff" * 2_000_000, b"u2")
    world.log.append(None, b"u3")
    world.event("u1", "i1")
    world.settle()
    first, second, third = world.log.topics[Topic.REJECTED]
    headers = {name: value.decode() for name, value in first.headers}
    assert (first.key, first.value) == (b"u1", b"{nonsense")
    assert headers["__connect.errors.exception.class.name"] == "not_json"
    assert headers["__connect.errors.topic"] == "events"
    assert headers["__connect.errors.partition"] == "0"
    assert headers["__connect.errors.offset"] == "0"
    assert headers["__connect.errors.exception.message"]
    assert second.value is not None
    assert len(b"u2" + second.value) == 900_000
    assert dict(second.headers)["__connect.errors.truncated.from.bytes"] == b"2000000"
    assert third.value == b""
    assert world.metrics.total("rejected") == 3
    assert len(world.lists()) == 1
    assert world.log.committed == {0: 4}


def test_records_without_a_timestamp_are_as_old_as_their_events(sasrec: Bundle) -> None:
    world = World(sasrec)
    value = {"user": "u1", "item": "i1", "time": START_MS}
    world.log.append(msgspec.json.encode(value), b"u1", timestamp=-1)
    world.settle()
    assert world.pipeline.owned[0].timestamp == START_MS
    assert not world.pipeline.owned[0].catching_up
    assert world.newest()["u1"].received_time == START_MS


def test_forget_erases_the_state_and_the_list(sasrec: Bundle) -> None:
    world = World(sasrec)
    world.event("u1", "i1")
    world.settle()
    world.log.append(b'{"user": "u1", "action": "forget"}', b"u1")
    world.settle()
    assert world.log.topics[Topic.RECOMMENDATIONS][-1].value is None
    assert len(world.pipeline.owned[0].state) == 0
    world.event("u1", "i2", second=9)
    world.settle()
    assert world.lists()[-1].events == 1


def test_a_list_from_before_a_forget_does_not_stay_when_tombstone_and_new_list_failed(sasrec: Bundle) -> None:
    world = World(sasrec, max_users_per_partition=1)
    world.event("u1", "i1")
    world.settle()
    world.transport.fail_next = 3  # the tombstone, the tombstone again, the list of the user who came back
    world.log.append(b'{"user": "u1", "action": "forget"}', b"u1")
    world.pipeline.step(0)
    world.event("u1", "i2")
    world.pipeline.step(0)
    assert world.transport.fail_next == 0
    world.event("u2", "i3")  # for whom u1 has to go, without a list
    world.settle()
    values = {record.key: record.value for record in world.log.topics[Topic.RECOMMENDATIONS]}
    assert values[b"u1"] is None
    assert values[b"u2"] is not None
    assert world.log.committed == {0: 4}


def test_a_tombstone_that_failed_does_not_erase_the_list_of_a_user_who_came_back(sasrec: Bundle) -> None:
    world = World(sasrec)
    world.event("u1", "i1")
    world.settle()
    world.transport.fail_next = 1
    world.log.append(b'{"user": "u1", "action": "forget"}', b"u1")
    world.log.append(b'{"user": "u2", "action": "forget"}', b"u2")
    world.event("u1", "i2", second=9)
    world.settle()
    world.settle()
    values = [record.value for record in world.log.topics[Topic.RECOMMENDATIONS] if record.key == b"u1"]
    assert values[-1] is not None
    assert world.lists()[-1].events == 1
    assert world.log.committed == {0: 4}


def test_a_position_does_not_wait_for_lists_but_the_users_stay_owed(sasrec: Bundle) -> None:
    world = World(sasrec)
    world.event("u1", "i1")
    world.settle()
    world.transport.hold_published = True
    for second in range(1, 4):
        world.event("u1", f"i{second + 1}", second=second)
        world.settle()
    assert world.log.committed == {0: 4}
    world.restart()
    world.settle()
    assert world.newest()["u1"].offset == 3


def test_a_position_does_not_pass_a_rejected_event_or_an_erasure_that_is_not_acknowledged(sasrec: Bundle) -> None:
    world = World(sasrec)
    world.event("u1", "i1")
    world.settle()
    world.transport.hold_published = True
    world.log.append(b"{", b"u2")
    world.event("u1", "i2", second=1)
    world.settle()
    assert world.log.committed == {0: 1}
    world.transport.hold_published = False
    world.transport.release()
    world.settle()
    assert world.log.committed == {0: 3}
    world.transport.hold_published = True
    world.log.append(b'{"user": "u1", "action": "forget"}', b"u1")
    world.settle()
    assert world.log.committed == {0: 3}


def test_a_list_that_fails_is_made_anew_and_covers_the_newest_event(sasrec: Bundle) -> None:
    world = World(sasrec)
    world.transport.fail_next = 1
    world.event("u1", "i1")
    world.settle()
    world.event("u1", "i2", second=1)
    world.settle()
    assert world.newest()["u1"].events == 2
    assert world.metrics.total("publish_failures") == 1
    assert world.log.committed == {0: 2}


def test_a_rejected_event_that_fails_is_sent_again(sasrec: Bundle) -> None:
    world = World(sasrec)
    world.transport.fail_next = 2
    world.log.append(b"{", b"u1")
    for _ in range(4):
        world.settle()
    assert [record.value for record in world.log.topics[Topic.REJECTED]] == [b"{"]
    assert world.log.committed == {0: 1}


def test_while_the_broker_is_away_events_wait_and_then_go_out_once(sasrec: Bundle) -> None:
    world = World(sasrec)
    world.event("u1", "i1")
    world.transport.away = True
    for _ in range(5):
        world.pipeline.step(0)
    assert world.lists() == []
    assert list(world.pipeline.marked) == [(0, "u1")]
    world.transport.away = False
    world.settle()
    assert len(world.lists()) == 1


def test_unacknowledged_records_are_bounded(sasrec: Bundle) -> None:
    world = World(sasrec, max_in_flight=7)
    world.transport.hold_published = True
    for number in range(40):
        world.event(f"u{number}", "i1")
    for _ in range(10):
        world.pipeline.step(0)
    assert world.transport.in_flight == 7
    assert len(world.pipeline.marked) == 33


def test_a_restart_restores_the_state_and_lists_only_what_is_owed(sasrec: Bundle) -> None:
    world = World(sasrec)
    for second in range(3):
        world.event("u1", f"i{second}", second=second)
    world.event("u2", "i5")
    world.log.append(b"{", b"u3")
    world.settle()
    before = exact(world.pipeline.owned[0].state, world.pipeline.actions)
    lists, rejects = len(world.lists()), len(world.log.topics[Topic.REJECTED])
    world.restart()
    world.settle()
    assert exact(world.pipeline.owned[0].state, world.pipeline.actions) == before
    assert len(world.lists()) == lists
    assert len(world.log.topics[Topic.REJECTED]) == rejects
    assert world.metrics.total("events") == 0
    world.event("u1", "i9", second=9)
    world.settle()
    assert world.lists()[-1].events == 4


def test_a_rebalance_moves_users_with_their_history(sasrec: Bundle) -> None:
    world = World(sasrec, partitions=2)
    for number in range(4):
        world.event(f"u{number}", "i1", partition=number % 2)
    world.settle()
    _, other, _ = world.worker()
    world.settle()
    world.settle(other)
    assert (set(world.pipeline.owned), set(other.owned)) in (({0}, {1}), ({1}, {0}))
    for number in range(4):
        world.event(f"u{number}", "i2", partition=number % 2, second=1)
    world.settle()
    world.settle(other)
    assert {top.user: top.events for top in world.lists()} == {f"u{number}": 2 for number in range(4)}
    assert world.log.committed == {0: 4, 1: 4}


def test_what_is_in_flight_for_a_lost_partition_is_forgotten(sasrec: Bundle) -> None:
    world = World(sasrec, partitions=2)
    world.transport.hold_published = True
    for number in range(2):
        world.event(f"u{number}", "i1", partition=number)
    for _ in range(3):
        world.pipeline.step(0)
    assert world.transport.in_flight == 2
    _, other, _ = world.worker()
    world.pipeline.step(0)
    world.transport.hold_published = False
    world.transport.release()
    world.settle()
    world.settle(other)
    assert set(world.newest()) == {"u0", "u1"}
    assert world.log.committed == {0: 1, 1: 1}


def test_drain_publishes_commits_and_says_whether_all_was_done(sasrec: Bundle) -> None:
    world = World(sasrec, max_poll_records=1000)
    for number in range(600):
        world.event(f"u{number}", "i1")
    while len(world.pipeline.marked) < 300:
        world.pipeline.step(0)
    assert world.pipeline.drain(30)
    assert len(world.newest()) == 600
    assert world.log.committed == {0: 600}
    world.event("u1", "i2", second=1)
    world.transport.away = True
    world.pipeline.step(0)  # lets events in again
    world.pipeline.step(0)
    assert not world.pipeline.drain(0.05)
    assert world.log.committed == {0: 601}  # the state is safe; the list is owed


def test_judged_against_the_list_before_the_event(popularity: Bundle) -> None:
    world = World(popularity)

    def value(name: str, **labels: str) -> float | None:
        return world.metrics.registry.get_sample_value(f"stream_worker_{name}_total", {"variant": "a", **labels})

    first = f"i{popularity.default_list[0]}"
    world.event("u1", first, second=0)  # no list yet: judged against the one for everybody, a hit at 1
    world.settle()
    second = world.lists()[0].items[2]
    world.event("u1", second, second=1)  # on the user's own list, at 3
    world.settle()
    world.event("u1", "nowhere", second=2)  # a miss
    world.settle()
    world.event("u1", world.lists()[-1].items[0], second=3, action="hide")  # the first of the list, and no hit
    world.settle()
    assert (value("judged", list="default"), value("judged", list="own")) == (1, 2)
    assert value("hits", list="default", k="1") == 1
    assert [value("hits", list="own", k=k) for k in ("1", "5", "10")] == [0, 1, 1]


def test_event_to_list_runs_from_the_oldest_event_the_list_is_first_to_cover(popularity: Bundle) -> None:
    world = World(popularity)
    for second, age_s in enumerate((4.0, 0.5)):
        value = {"user": "u1", "item": f"i{second}", "time": START_MS}
        world.log.append(msgspec.json.encode(value), b"u1", timestamp=START_MS + 1000 - int(age_s * 1000))
    world.settle()
    labels = {"catching_up": "false"}
    assert world.metrics.registry.get_sample_value("stream_worker_event_to_list_seconds_sum", labels) == 4.0
    assert world.metrics.registry.get_sample_value("stream_worker_event_to_list_seconds_count", labels) == 1


def test_a_forget_in_a_partition_where_the_user_never_was_erases_nobodys_list(sasrec: Bundle) -> None:
    world = World(sasrec, partitions=2)
    home = world.transport.home(b"u1")
    world.event("u1", "i1", partition=home)
    world.log.append(b'{"user": "u1", "action": "forget"}', b"u1", partition=home)
    world.settle()
    world.event("u1", "i2", partition=home, second=1)  # back, before the other partition gets there
    world.settle()
    world.log.append(b'{"user": "u1", "action": "forget"}', b"u1", partition=1 - home)
    world.settle()
    values = [record.value for record in world.log.topics[Topic.RECOMMENDATIONS]]
    assert values.count(None) == 1
    assert values[-1] is not None
    assert world.metrics.total("evicted") == 1
