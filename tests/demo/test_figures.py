"""The demo's arithmetic: pace, waits, quantiles, and the lines it prints."""

import math
import random

import pytest

from demo import screen
from demo.latency import Ledger, bucket_quantile, quantile
from demo.pacing import Pace
from demo.scrape import Quality
from stream_worker.messages import TopK


def a_list(user: str, events: int) -> TopK:
    return TopK(
        user=user, items=["i1", "i2"], scores=[2.0, 1.0], model="m", variant="a", events=events,
        event_time=0, received_time=0, published_time=0, partition=0, offset=events,
    )  # fmt: skip


def test_events_are_due_by_deadlines_from_the_start() -> None:
    pace = Pace(start=100.0, rate=200.0)
    assert pace.due(99.9) == 0
    assert pace.due(100.0) == 1
    assert pace.due(101.0) == 201
    assert pace.wait(201, 101.0) == pytest.approx(0.005)


def test_a_slow_moment_is_made_up(seed: int) -> None:
    """However long each sending takes, what is due at 60 s is what 200 events/s from the start amount to."""
    rng = random.Random(seed)
    pace, now, sent = Pace(0.0, 200.0), 0.0, 0
    while now < 60:
        sent += pace.due(now) - sent
        now += rng.choice([0.0, 0.001, 0.5])  # sending
        now += pace.wait(sent, now)
    sent = pace.due(now)
    assert sent == pytest.approx(200 * now, abs=1.01)


@pytest.mark.parametrize("rate", [0.3, 1, 7, 199.9, 5000])
def test_after_its_wait_an_event_is_due(rate: float) -> None:
    pace = Pace(12.5, rate)
    for sent in range(1000):
        assert pace.due(12.5 + pace.wait(sent, 12.5)) > sent


def test_a_list_answers_the_events_it_is_the_first_to_cover_with_the_age_of_the_oldest() -> None:
    ledger = Ledger()
    for moment in (1.0, 2.0, 3.0):
        ledger.sent("u", moment)
    ledger.read(a_list("u", 2), 5.0)
    assert ledger.take() == [4.0]
    assert ledger.waiting == 1
    ledger.read(a_list("u", 2), 6.0)  # published again after a restart: covers nothing new
    ledger.read(a_list("u", 3), 6.5)
    assert ledger.take() == [3.5]
    assert (ledger.waiting, ledger.events, ledger.lists, ledger.users) == (0, 3, 3, 1)
    assert ledger.waits == [4.0, 3.5]


def test_a_list_for_an_event_typed_by_hand_is_counted_and_no_more() -> None:
    ledger = Ledger()
    ledger.read(a_list("me", 1), 5.0)
    assert (ledger.take(), ledger.lists, ledger.waiting) == ([], 1, 0)


def test_quantiles_are_values_that_occurred() -> None:
    assert quantile([], 0.5) is None
    assert quantile([3.0], 0.99) == 3.0
    assert quantile([4.0, 1.0, 3.0, 2.0], 0.5) == 3.0
    assert quantile(list(range(1000)), 0.99) == 990


def test_bucket_quantiles_are_those_of_prometheus() -> None:
    buckets = {0.001: 0.0, 0.002: 50.0, 0.004: 100.0, math.inf: 100.0}
    assert bucket_quantile(buckets, 0.5) == pytest.approx(0.002)
    assert bucket_quantile(buckets, 0.75) == pytest.approx(0.003)
    assert bucket_quantile({}, 0.5) is None
    assert bucket_quantile({0.1: 0.0, math.inf: 0.0}, 0.5) is None
    assert bucket_quantile({0.1: 0.0, 0.2: 0.0, math.inf: 9.0}, 0.5) == 0.2


def test_a_line_stands_under_its_header_within_100_columns() -> None:
    second = screen.Second(83.2, 200.4, 187.9, 12_345, [0.0041, 12.5], Quality(123_456, 9_000), Quality(0, 0))
    line = screen.line(second)
    assert line.split() == ["1:23", "200", "188", "12,345", "12,500", "12,500", "0.073", "123,456", "-", "0"]
    assert len(line) == len(screen.HEADER[1]) <= 100
    assert max(map(len, (*screen.HEADER, *screen.LEGEND))) <= 105


def test_an_example_names_titles_where_it_knows_them() -> None:
    lines = screen.example(a_list("u", 7), {"i2": "Heat"})
    assert lines == ["user u after 7 events:", "i1 · Heat …"]
