"""What the live page reckons: quality on the same events, the ending, bars, titles, and sentences on workers."""

import pytest

from demo.audience import Audience, Comparison
from demo.ending import Ending
from demo.page.notices import Notices, partitions
from demo.page.report import EDGES_MS, bars
from demo.page.titles import Title, Titles, shown, spoken
from stream_worker.messages import TopK

ITEMS = [f"i{number}" for number in range(30)]


def a_list(items: list[str], because: list[str | None] | None = None) -> TopK:
    found = TopK(
        user="u", items=items, scores=[9.0 - n for n in range(len(items))], model="m", variant="a", events=1,
        event_time=0, received_time=0, published_time=0, partition=0, offset=0,
    )  # fmt: skip
    if because is not None:
        found.because = because
    return found


def test_an_event_is_judged_against_the_list_that_was_held_and_against_popularity_without_what_was_seen() -> None:
    audience = Audience(ITEMS)
    audience.replayed("u", "i0", None)
    assert audience.comparison == Comparison(), "no list yet, nothing to compare"
    audience.replayed("u", "i10", a_list(["i10"]))  # i0 is seen, so i10 is the tenth of the popular ones
    assert audience.comparison == Comparison(1, 1, 1)
    audience.replayed("u", "i12", a_list(["i29"]))
    assert audience.comparison == Comparison(2, 1, 1)
    audience.replayed("u", "i25", a_list(ITEMS[15:26]))  # on the list, but not among the first ten
    assert audience.comparison == Comparison(3, 1, 1)


def test_clicks_on_the_page_are_seen_and_not_judged() -> None:
    audience = Audience(ITEMS)
    for item in ("i3", "i1", "i3"):
        audience.clicked("me", item)
    assert audience.recent("me") == ["i3", "i1"]
    assert audience.popular("me")[:3] == ["i0", "i2", "i4"]
    assert audience.comparison == Comparison()
    assert audience.active(5) == []
    assert audience.recent("nobody") == []


def test_the_busiest_users_of_late_are_the_active_ones() -> None:
    audience = Audience(ITEMS)
    for user in ("a", "b", "b", "c", "c", "c"):
        audience.replayed(user, "i1", None)
    assert audience.active(2) == ["c", "b"]


@pytest.mark.parametrize(
    ("duration", "seconds", "events_left", "over"),
    [(None, 999, 1, False), (None, 1, 0, True), (3, 2.9, 9, False), (3, 3, 9, True), (0, 999, 0, False)],
)
def test_the_demo_ends_in_time_unless_it_is_kept_going(
    duration: float | None, seconds: float, events_left: int, over: bool
) -> None:
    ending = Ending(duration)
    assert ending.over(seconds, events_left) is over
    ending.keep()
    assert not ending.over(seconds, events_left)


def test_the_time_left_is_that_of_the_events_or_the_duration() -> None:
    assert Ending(None).seconds_left(10, 400, 200) == 2
    assert Ending(11).seconds_left(10, 400, 200) == 1
    assert Ending(0).seconds_left(10, 400, 200) is None


def test_every_wait_is_in_one_bar() -> None:
    waits = [0.0, 0.0019, 0.002, 0.0039, 0.1, 4.095, 4.096, 99]
    counts = bars(waits)
    assert len(counts) == len(EDGES_MS) + 1
    assert sum(counts) == len(waits)
    assert (counts[0], counts[1], counts[-2], counts[-1]) == (2, 2, 1, 2)


@pytest.mark.parametrize(
    ("sorted_by", "said"),
    [("Usual Suspects, The", "The Usual Suspects"), ("Postino, Il", "Il Postino"), ("Heat", "Heat"),
     ("Boot, Das (1981)", "Das Boot (1981)"), ("I, Robot", "I, Robot")],
)  # fmt: skip
def test_a_title_reads_as_it_is_said(sorted_by: str, said: str) -> None:
    assert spoken(sorted_by) == said


def test_a_list_is_shown_with_titles_and_reasons() -> None:
    titles = Titles({"i1": Title("i1", "Heat", "1995 · Crime"), "i2": Title("i2", "Fargo", "1996 · Crime")})
    rows = shown(titles, a_list(["i1", "new"], ["i2", None]), [])
    assert rows == [
        {"item": "i1", "title": "Heat", "detail": "1995 · Crime", "score": 9.0, "because": "Fargo"},
        {"item": "new", "title": "new", "detail": "", "score": 8.0, "because": None},
    ]
    assert [row["because"] for row in shown(titles, a_list(["i1"]), [])] == [None], "a model that does not say why"
    assert shown(titles, None, ["i2"]) == [
        {"item": "i2", "title": "Fargo", "detail": "1996 · Crime", "score": None, "because": None}
    ]


def test_what_happens_to_the_workers_is_told_once() -> None:
    notices = Notices()
    assert notices.look({1: [0, 2], 2: [1, 3]}, 0.0) == []
    told = notices.killed(2, 10.0)
    assert told == "Worker 2 killed with kill -9. Clicks of partitions 1 and 3 are kept in Kafka meanwhile."
    assert notices.look({1: [0, 2]}, 11.0) == []
    (told,) = notices.look({1: [0, 1, 2, 3]}, 14.2)
    assert told.startswith("Worker 1 has taken partitions 1 and 3, 4 s after the kill.")
    assert notices.look({1: [0, 1, 2, 3], 2: []}, 15.0) == []
    assert notices.look({1: [0, 2], 2: [1, 3]}, 16.0) == ["Worker 2 has taken partitions 1 and 3."]
    assert notices.look({1: [0, 2], 2: [1, 3]}, 17.0) == []


def test_a_worker_that_comes_back_before_others_take_over_has_taken_its_own() -> None:
    notices = Notices()
    notices.look({1: [0], 2: [1]}, 0.0)
    notices.killed(2, 1.0)
    (told,) = notices.look({1: [0], 2: [1]}, 3.0)
    assert told.startswith("Worker 2 has taken partition 1, 2 s after the kill.")
    assert notices.killed(3, 4.0) == "Worker 3 killed with kill -9."


def test_partitions_in_words() -> None:
    assert partitions([4]) == "partition 4"
    assert partitions([0, 1, 3]) == "partitions 0, 1 and 3"
