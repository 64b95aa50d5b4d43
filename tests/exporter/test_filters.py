"""Bots, k-core and sessions against plain loops, and what the report says of them."""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from exporter.cli import main
from exporter.data import clean
from exporter.filters import HOUR_MS, MINUTE_MS, Filters, bursts, core, filtered, session_places
from tests.exporter.conftest import write_events

AT = 1_767_225_600_000


def some_events(seed: int, events: int = 3000) -> pl.DataFrame:
    """Users and items of very different activity, in time order."""
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "user": [f"u{n}" for n in (80 * rng.random(events) ** 3).astype(int)],
            "item": [f"i{n}" for n in (300 * rng.random(events) ** 2).astype(int)],
            "action": "view",
            "has_time": True,
            "time": AT + np.sort(rng.integers(0, 4 * 3600, events)) * 1000,
        }
    )


def times_of(events: pl.DataFrame) -> dict[str, list[int]]:
    times: dict[str, list[int]] = defaultdict(list)
    for user, time in events.select("user", "time").rows():
        times[user].append(time)
    return times


@pytest.mark.parametrize(("most", "window"), [(3, MINUTE_MS), (40, HOUR_MS), (1, MINUTE_MS)])
def test_a_bot_has_more_events_than_allowed_in_some_window(seed: int, most: int, window: int) -> None:
    events = some_events(seed)
    bots = {
        user
        for user, times in times_of(events).items()
        if any(sum(start <= time < start + window for time in times) > most for start in times)
    }
    assert set(bursts(events, most, window)) == bots


def test_in_the_core_everybody_has_enough_and_nobody_is_left_out_who_has(seed: int) -> None:
    events = some_events(seed)
    plain = events.rows()
    while True:
        users, items = Counter(row[0] for row in plain), Counter(row[1] for row in plain)
        rest = [row for row in plain if users[row[0]] >= 12 and items[row[1]] >= 12]
        if len(rest) == len(plain):
            break
        plain = rest
    assert core(events, 12).rows() == plain
    assert 0 < len(plain) < events.height
    assert core(events, 1).height == events.height
    assert core(events, 10_000).height == 0


def test_what_is_filtered_is_counted_under_its_reason(seed: int) -> None:
    events, cleaning = clean(some_events(seed))
    rest, report = filtered(events, cleaning, Filters(per_minute=50, per_hour=100, core=5))
    assert report.kept == rest.height == report.read - sum(report.dropped.values())
    assert report.users == rest["user"].n_unique()
    assert any("(1 users with over 100 events within an hour)" in reason for reason in report.dropped)
    assert any("(5-core)" in reason for reason in report.dropped)
    assert rest["time"].is_sorted()
    same, untouched = filtered(events, cleaning, Filters())
    assert same.equals(events)
    assert untouched == cleaning


def test_a_session_ends_with_a_long_silence(seed: int) -> None:
    events = some_events(seed)
    gap = 20 * MINUTE_MS
    last: dict[str, tuple[int, int, int]] = {}  # time, session, place
    expected, sessions = [], 0
    for user, time in events.select("user", "time").rows():
        if user in last and time - last[user][0] <= gap:
            last[user] = (time, last[user][1], last[user][2] + 1)
        else:
            last[user] = (time, sessions, 0)
            sessions += 1
        expected.append(last[user][1:])
    assert session_places(events, gap).rows() == expected
    assert sessions > events["user"].n_unique()


def test_train_and_evaluate_take_the_same_filters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = write_events(tmp_path / "events.csv")
    with events.open("a") as file:
        file.writelines(f"robot,i{n % 31},{1_700_000_100 + n}\n" for n in range(200))
    models = tmp_path / "models"
    data = ["--events", str(events), "--max-events-per-minute", "20", "--core", "3", "--session-gap-minutes", "18"]
    assert main(["train", *data, "--model", "popularity", "--out", str(models)]) == 0
    said = capsys.readouterr().out
    assert "dropped 200: bot (1 users with over 20 events within a minute)" in said
    assert "sessions: " in said
    assert main(["evaluate", *data, "--bundle", str(models), "--html", str(tmp_path / "r.html")]) == 0
    assert "session 3rd-5th" in capsys.readouterr().out
    assert "By place in the session" in (tmp_path / "r.html").read_text()
    assert main(["train", *data, "--core", "1000", "--model", "popularity", "--out", str(models)]) == 4
    assert "Lower --core" in capsys.readouterr().err
