"""Offline and online agree: the worker's own judge, the lists' figures, and torch on the trainer's log."""

from collections import defaultdict
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from exporter.data import clean
from exporter.evaluate.protocols import Lists, Stream, leave_one_out, prequential, time_split
from exporter.evaluate.served import Replay
from exporter.evaluate.slices import by_activity, by_age, by_list, by_warmth, over_time
from exporter.evaluation import hit_rate, ndcg, scorer_of
from exporter.evaluation import prequential as trainers_walk
from exporter.export import write_bundle
from exporter.histories import Horizon, Log
from exporter.models import Recommender
from stream_worker.bundle import Bundle
from stream_worker.errors import DataError, SettingsError
from tests.exporter.conftest import CODES, LENGTH, K, N, catalogue, new_model, serving

EVENTS, CUT, KEPT = 900, 500, 12
AT = 1_767_225_600_000
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def sasrec() -> Recommender:
    return new_model("sasrec")


@pytest.fixture(scope="module")
def served(sasrec: Recommender, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return Bundle(write_bundle(tmp_path_factory.mktemp("served"), sasrec, catalogue(), serving(), now))


def events_of(seed: int) -> pl.DataFrame:
    """Repeats, users and items that appear late, items and actions the model does not know, many in one second."""
    rng = np.random.default_rng(seed)
    number = np.arange(EVENTS)
    raw = pl.DataFrame(
        {
            "user": [f"u{n}" for n in (rng.random(EVENTS) * (10 + number / 15)).astype(int)],
            "item": [f"i{n}" for n in (rng.random(EVENTS) ** 2 * (20 + number / 30)).astype(int)],
            "action": rng.choice(["view", "view", "click", "purchase", "share", "hide"], EVENTS),
            "has_time": True,
            "time": AT + np.sort(rng.integers(0, 60 * 86_400, EVENTS)) * 1000 // 7 * 7,
        }
    )
    return clean(raw)[0]


@pytest.fixture
def stream(seed: int, served: Bundle) -> Stream:
    return Stream.of(events_of(seed), CUT, served.items.ids)


def test_the_worker_counts_the_hits_that_the_offline_evaluation_finds(
    stream: Stream, served: Bundle, sasrec: Recommender
) -> None:
    replay = Replay(served, KEPT, excluded_length=500)
    lists = prequential(replay, stream, QUIET)

    log = Log.of(stream.events, [f"i{row}" for row in range(N)], CODES, ["purchase"])
    horizon = Horizon(LENGTH, KEPT, kept_excluding=None)
    tested = np.array([number for number in range(CUT, stream.events.height) if number in wanted_of(stream)])
    assert 0 < len(tested) < stream.events.height - CUT, "what is hidden should have been on no list"
    rank_R = trainers_walk(scorer_of(sasrec), log, tested, horizon)

    judged, default = lists.judged["own"], lists.judged["default"]
    assert judged.judged + default.judged == len(tested)
    assert default.judged > 0, "some users come after the cut: their first event is judged by the default list"
    for k in (1, 5):
        hits = judged.hits[k] + default.hits[k]
        assert hits == int((rank_R <= k).sum()) == int(lists.gains_RK[:, :k].sum())
        assert hits / len(tested) == pytest.approx(hit_rate(rank_R, k))
    in_list_R = np.where(lists.rank_P > 0, lists.rank_P, np.inf)
    assert ndcg(in_list_R, K) == pytest.approx(ndcg(rank_R, K))
    assert default.judged == int((~lists.own_R).sum())


def wanted_of(stream: Stream) -> set[int]:
    """The events that are no `hide`."""
    return {number for number, action in enumerate(stream.events["action"]) if action != "hide"}


def targets_of(lists: Lists, number: int) -> list[int]:
    return sorted(lists.event_P[lists.list_P == number].tolist())


def test_leave_one_out_asks_for_each_users_last_event_after_the_cut(stream: Stream, served: Bundle) -> None:
    lists = leave_one_out(Replay(served, KEPT, 32), stream, QUIET)
    last = {user: number for number, user in enumerate(stream.events["user"])}
    expected = sorted(number for number in last.values() if number >= CUT and number in wanted_of(stream))
    assert len(expected) < sum(number >= CUT for number in last.values())
    assert lists.event_P.tolist() == lists.made_R.tolist() == expected
    walk = prequential(Replay(served, KEPT, 32), stream, QUIET)
    for number, event in enumerate(expected):
        (place,) = np.flatnonzero(walk.event_P == event)
        np.testing.assert_array_equal(lists.rows_RK[number], walk.rows_RK[place])


def test_time_split_asks_one_list_for_all_that_came_after(stream: Stream, served: Bundle) -> None:
    lists = time_split(Replay(served, KEPT, 32), stream, QUIET)
    wanted: dict[str, dict[str, int]] = defaultdict(dict)
    for number, (user, item) in enumerate(stream.events.select("user", "item").rows()[CUT:], CUT):
        if number in wanted_of(stream):
            wanted[user].setdefault(item, number)
    assert len(lists) == len(wanted)
    for number in range(len(lists)):
        user = stream.events["user"][targets_of(lists, number)[0]]
        assert targets_of(lists, number) == sorted(wanted[user].values())
        assert lists.own_R[number] == (user in stream.events["user"][:CUT].to_list())
    assert (lists.targets_R == np.bincount(lists.list_P)).all()


@pytest.mark.parametrize("protocol", [prequential, time_split])
def test_slices_are_those_of_a_plain_walk(stream: Stream, served: Bundle, protocol: object) -> None:
    lists: Lists = protocol(Replay(served, KEPT, 32), stream, QUIET)  # type: ignore[operator]
    users, items, times = (stream.events[name].to_list() for name in ("user", "item", "time"))
    activity: dict[str, list[bool]] = defaultdict(list)
    age: dict[str, list[bool]] = defaultdict(list)
    warmth: dict[str, list[bool]] = defaultdict(list)
    for place, event in enumerate(lists.event_P):
        made = lists.made_R[lists.list_P[place]]
        before = users[:made].count(users[event])
        hit = 0 < lists.rank_P[place] <= K
        activity["0" if not before else "1" if before == 1 else "2-5" if before < 6 else "6+"].append(hit)
        first = items.index(items[event])
        days = (times[made] - times[first]) / 86_400_000
        name = "< 1 day" if days < 1 else "1-7 days" if days < 7 else "7-30 days" if days < 30 else "30+ days"
        age["new" if first >= made else name].append(hit)
        warmth["warm items" if first < CUT else "cold items"].append(hit)
    for found, expected in (
        (by_activity(lists, stream, K), activity),
        (by_age(lists, stream, K), age),
        (by_warmth(lists, stream, K), warmth),
    ):
        assert {one.name: one.targets for one in found if one.targets} == {
            name: len(hits) for name, hits in expected.items()
        }
        for one in found:
            assert one.hr == pytest.approx(np.mean(expected[one.name]) if one.targets else 0)
    for found in (by_list(lists, K), over_time(lists, stream, K)):
        assert sum(one.targets for one in found) == len(lists.event_P)


def test_nothing_after_the_cut_and_too_short_a_history_are_said(stream: Stream, served: Bundle) -> None:
    with pytest.raises(DataError, match="--train-share"):
        Stream.of(stream.events, stream.events.height, [])
    with pytest.raises(SettingsError, match="--history-length 5"):
        Replay(served, 5, 32)
