"""The breaker stops a worker when somebody has changed the format, and does not mind a few bad events."""

import msgspec
import pytest

from stream_worker.bundle import Bundle
from stream_worker.errors import DataError, RejectedEventError
from stream_worker.rejects import LEAST_EVENTS, WINDOW_EVENTS, Breaker, rejected
from stream_worker.state import Partition
from stream_worker.transports.base import Topic
from stream_worker.transports.memory import MemoryRecord
from tests.worker.world import World

SHARE = 0.5


def test_a_rejected_record_is_kept_below_every_brokers_limit() -> None:
    record = MemoryRecord(7, 0, b"k" * 400_000, b"v" * 1_000_000)
    error = RejectedEventError("not_decodable", "the decoder refused it: KeyError", "x" * 700_000)
    sent = rejected("events", Partition(0, 4, 2, 5), record, error)
    headers = {name.removeprefix("__connect.errors."): text for name, text in sent.headers}
    assert sent.nbytes + sum(len(name) + len(text) for name, text in sent.headers) < 910_000
    assert headers["exception.message"].startswith(b"the decoder refused it: KeyError: xxx")
    assert headers["truncated.from.bytes"] == b"1000000"
    assert headers["truncated.key.from.bytes"] == b"400000"
    assert sent.key == b"k" * 100_000
    assert sent.value == b"v" * 800_000


def old(world: World, number: int) -> None:
    """An event as it was."""
    world.event(f"u{number % 40}", f"i{number % 60}", second=number % 200)


def new(world: World, number: int) -> None:
    """An event after the change: the user has another name."""
    value = {"userId": f"u{number % 40}", "item": f"i{number % 60}"}
    world.log.append(msgspec.json.encode(value), b"u%d" % (number % 40))


def run(world: World) -> str:
    """Step until the breaker trips; what it says."""
    with pytest.raises(DataError) as caught:
        world.settle()
    assert caught.value.exit_code == 4
    return str(caught.value)


def test_a_format_nobody_can_read_stops_the_worker_within_the_first_thousand_events(popularity: Bundle) -> None:
    world = World(popularity, max_poll_records=100)
    for number in range(5000):
        new(world, number)
    message = run(world)
    assert "topic 'events': 1000 of the last 1000 events were rejected, the last one because user is absent" in message
    assert "--max-reject-share 1 goes on regardless" in message
    assert world.log.committed[0] <= LEAST_EVENTS
    assert len(world.log.topics[Topic.REJECTED]) == LEAST_EVENTS  # where they are kept


def test_a_change_of_format_stops_a_worker_that_has_read_many_good_events(popularity: Bundle) -> None:
    world = World(popularity, max_poll_records=500)
    good = WINDOW_EVENTS + 3000
    for number in range(good):
        old(world, number)
    world.settle()
    for number in range(3 * WINDOW_EVENTS):
        new(world, number)
    message = run(world)
    rejects = len(world.log.topics[Topic.REJECTED])
    assert SHARE * WINDOW_EVENTS < rejects <= SHARE * WINDOW_EVENTS + 1000
    assert f"{rejects} of the last" in message
    assert world.log.committed[0] <= good + rejects


def test_the_event_that_made_the_worker_stop_is_not_passed_by_the_position(popularity: Bundle) -> None:
    world = World(popularity, max_poll_records=2000)
    for number in range(1500):
        new(world, number)
    run(world)
    assert world.log.committed == {}
    world.settings = world.settings.model_copy(update={"event_user_field": "userId"})  # the mend
    world.restart()
    world.finish()
    assert len(world.newest()) == 40
    assert world.metrics.total("rejected") == 0
    assert world.metrics.total("events") + world.metrics.total("duplicates") == 1500


def test_a_few_bad_events_stop_nobody(popularity: Bundle) -> None:
    world = World(popularity, max_poll_records=300)
    for number in range(3000):
        old(world, number)
    for number in range(2000):
        new(world, number)  # an outburst
    for number in range(6000):
        (new if number % 3 == 0 else old)(world, number)
    world.settle()
    assert world.metrics.total("rejected") == 4000
    assert world.log.committed == {0: 11_000}


def test_a_worker_with_fewer_than_a_thousand_events_does_not_judge_yet(popularity: Bundle) -> None:
    world = World(popularity, max_poll_records=300)
    for number in range(LEAST_EVENTS - 1):
        new(world, number)
    world.settle()
    assert world.log.committed == {0: LEAST_EVENTS - 1}


def test_the_breaker_can_be_told_to_go_on_regardless(popularity: Bundle) -> None:
    world = World(popularity, max_reject_share=1)
    for number in range(3000):
        new(world, number)
    world.settle()
    assert world.log.committed == {0: 3000}


@pytest.mark.parametrize("batch", [1, 7, 500, 20_000])
def test_the_window_forgets_what_is_ten_thousand_events_old(batch: int) -> None:
    breaker = Breaker("events", SHARE)
    for _ in range(5 * WINDOW_EVENTS // batch + 1):
        breaker.count(batch, 0, "")
    most = int(SHARE * WINDOW_EVENTS) // batch
    for _ in range(most):
        breaker.count(batch, batch, "")
    with pytest.raises(DataError, match="because of that"):
        _trip(breaker, batch)


def _trip(breaker: Breaker, batch: int) -> None:
    for _ in range(2 + batch // WINDOW_EVENTS):
        breaker.count(batch, batch, "of that")
