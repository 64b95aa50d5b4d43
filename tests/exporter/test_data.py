"""Files of events and items: what is read, dropped, mapped and refused."""

from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from exporter.data import Columns, action_codes, load_events, load_items
from stream_worker.errors import DataError

COLUMNS = Columns()
AT = 1_767_225_600  # 2026-01-01T00:00:00Z, in seconds


def test_a_nasty_csv_of_100k_rows_is_cleaned_and_the_report_is_exact(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    good = [(f"u{n % 700}", f"i{n % 900}", "view", str(AT + n)) for n in range(88_000)]
    bad = {
        "no user": [("", "i1", "view", str(AT))] * 1_000,
        "no item": [("u1", "", "view", str(AT))] * 1_500 + [("u1", "", "", "yesterday")] * 10,
        "bad user (over 256 bytes, control characters, or '*')": [("*", "i1", "view", str(AT))] * 100
        + [("u\x07", "i1", "view", str(AT))] * 100
        + [("ü" * 129, "i1", "view", str(AT))] * 50,
        "bad item (over 256 bytes, or control characters)": [("u1", "x" * 257, "view", str(AT))] * 250
        + [("u1", "i\x85", "view", str(AT))] * 40,
        "bad action (over 64 bytes, or control characters)": [("u1", "i1", "vi\tew", str(AT))] * 30,
        "no time": [("u1", "i1", "view", "")] * 300,
        "unreadable time": [("u1", "i1", "view", "yesterday")] * 600 + [("u1", "i1", "view", "nan")] * 20,
        "time before 1990 or after 2105": [("u1", "i1", "view", "0")] * 200
        + [("u1", "i1", "view", "9999999999")] * 200,
        "item not in the items file": [("u1", "unwanted", "view", str(AT))] * 600,
        "duplicate (same user, item, action and second)": [(*row[:3], row[3] + ".25") for row in good[:5_000]],
    }
    rows = good + [row for some in bad.values() for row in some]
    rows += [("u1", f"i{n}", "", str(AT - 1 - n)) for n in range(100_000 - len(rows))]  # no action: a view
    kept = 88_000 + sum(row[2] == "" and row[1] != "" for row in rows)
    rows = [rows[place] for place in rng.permutation(len(rows))]
    path = tmp_path / "events.csv"
    pl.DataFrame(rows, schema=["user", "item", "action", "time"], orient="row").write_csv(path)

    wanted = [f"i{n}" for n in range(10_000)]
    events, cleaning = load_events(path, COLUMNS, wanted)

    assert cleaning.read == 100_000
    assert cleaning.dropped == {reason: len(some) for reason, some in bad.items()}
    assert cleaning.kept == events.height == kept == 100_000 - sum(cleaning.dropped.values())
    assert events["time"].is_sorted()
    assert set(events["action"]) == {"view"}
    assert cleaning.users == 700
    assert cleaning.moved > 80_000
    report = "\n".join(cleaning.lines())
    assert "100,000 read" in report
    assert "  dropped 1,510: no item" in report


def test_rows_of_one_time_keep_the_order_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    items = [f"i{n}" for n in range(50)]
    pl.DataFrame({"user": "u", "item": [*items, "first"], "time": [AT] * 50 + [AT - 1]}).write_csv(path)
    events, cleaning = load_events(path, COLUMNS)
    assert events["item"].to_list() == ["first", *items]
    assert cleaning.moved == 1


def test_columns_are_mapped_and_ids_stay_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "events.tsv"
    path.write_text(f"who\twhat\twhen\tdid\tmore\n007\t1.0\t{AT}\tlike\tx\n")
    events, _ = load_events(path, Columns("who", "what", "when", "did"))
    assert events.rows() == [("007", "1.0", "like", AT * 1000)]


def test_numbers_as_ids_become_text_even_where_a_missing_one_made_them_floats(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    pl.DataFrame({"user": [7.0, None], "item": [1, 2], "time": [AT, AT]}).write_parquet(path)
    events, cleaning = load_events(path, COLUMNS)
    assert events.rows() == [("7", "1", "view", AT * 1000)]
    assert cleaning.dropped == {"no user": 1}


@pytest.mark.parametrize(
    "text",
    [
        f"{AT}",
        f"{AT}.0",
        f"{AT * 1000}",
        "2026-01-01T00:00:00Z",
        "2026-01-01T00:00:00.000000Z",
        "2026-01-01T02:00:00+02:00",
        "2026-01-01 02:00:00+0200",
        "2026-01-01 00:00:00",
        "2026-01-01 00:00",
        "2026-01-01",
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_times_as_text_or_number(tmp_path: Path, text: str, kind: str) -> None:
    path = tmp_path / f"events.{kind}"
    if kind == "csv":
        path.write_text(f"user,item,time\nu,i,{text}\n")
    else:
        value = text if text.replace(".", "").isdigit() else f'"{text}"'
        path.write_text(f'{{"user": "u", "item": "i", "time": {value}}}\n')
    events, _ = load_events(path, COLUMNS)
    assert events["time"].to_list() == [AT * 1000]


@pytest.mark.parametrize(
    "value",
    [datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1), date(2026, 1, 1), AT, float(AT), AT * 1000],
)
def test_times_in_parquet(tmp_path: Path, value: object) -> None:
    path = tmp_path / "events.parquet"
    pl.DataFrame({"user": ["u"], "item": ["i"], "time": [value]}).write_parquet(path)
    events, _ = load_events(path, COLUMNS)
    assert events["time"].to_list() == [AT * 1000]


def test_milliseconds_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text(f"user,item,time\nu,a,{AT}.123\nu,b,2026-01-01T00:00:00.456Z\n")
    events, _ = load_events(path, COLUMNS)
    assert (events["time"] - AT * 1000).to_list() == [123, 456]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.csv", None, "no such file"),
        ("events.xlsx", "x", "unknown kind of file '.xlsx'"),
        ("events.csv", "", "not readable as csv"),
        ("events.parquet", "not parquet", "not readable as parquet"),
        ("events.jsonl", '{"user": ', "not readable as jsonl"),
        (
            "events.csv",
            "who,item,time\n1,2,3\n",
            "no column 'user'. There are who, item, time. Name it with --user-column",
        ),
        ("events.csv", "user,item,time\n", "no event is left (the file is empty)"),
        ("events.csv", "user,item,time\nu,i,never\n", "no event is left (1 unreadable time)"),
        ("events.jsonl", '{"user": ["u"], "item": 1, "time": 1}\n', "column 'user' holds List(String)"),
    ],
)
def test_an_unusable_file_is_refused_in_one_line(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError) as caught:
        load_events(path, COLUMNS)
    assert message in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_named_action_column_must_be_there(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text(f"user,item,time\nu,i,{AT}\n")
    with pytest.raises(DataError, match=r"no column 'did'.*--action-column"):
        load_events(path, Columns(action="did"))


def test_items_keep_their_attributes_and_the_first_of_a_name(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(
        '{"id": "a", "title": "A", "genres": ["x", "y"], "item": 1}\n'
        '{"id": "a", "title": "A again", "genres": [], "item": 2}\n'
        '{"id": "", "title": "nobody", "genres": [], "item": 3}\n'
        '{"id": "b", "title": null, "genres": null, "item": 4}\n'
    )
    items, lines = load_items(path, Columns(item="id"))
    assert items.to_dicts() == [
        {"item": "a", "title": "A", "attributes": {"genres": ["x", "y"], "item": 1}},
        {"item": "b", "title": "", "attributes": {"genres": None, "item": 4}},
    ]
    assert any("dropped 1: item named twice" in line for line in lines)


def test_what_is_not_wanted_has_codes_of_its_own() -> None:
    events = pl.DataFrame({"action": ["share", "view", "hide", "dislike", "comment"]})
    codes = action_codes(events)
    assert codes == {
        "view": 1,
        "click": 2,
        "cart": 3,
        "purchase": 4,
        "like": 5,
        "comment": 6,
        "share": 7,
        "hide": 254,
        "dislike": 255,
    }


def test_too_many_actions_are_refused() -> None:
    with pytest.raises(DataError, match="at most 253"):
        action_codes(pl.DataFrame({"action": [f"a{n}" for n in range(300)]}))


@pytest.mark.parametrize("per_second", [1, 10**3, 10**6, 10**9])
def test_the_unit_of_a_time_is_told_by_its_size(tmp_path: Path, per_second: int) -> None:
    path = tmp_path / "events.parquet"
    pl.DataFrame({"user": ["u", "v"], "item": "i", "time": [AT * per_second, (AT + 60) * per_second]}).write_parquet(
        path
    )
    assert load_events(path, COLUMNS)[0]["time"].to_list() == [AT * 1000, (AT + 60) * 1000]


def test_ratings_leave_other_actions_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text(f"user,item,time,action,rating\nu,a,{AT},rate,1\nu,b,{AT},purchase,\nu,c,{AT},rate,5\n")
    events, _ = load_events(path, Columns(rating="rating"))
    assert events["action"].to_list() == ["dislike", "purchase", "like"]


def test_columns_may_lie_within_objects(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(f'{{"who": {{"id": "u1"}}, "what": {{"item": {{"id": "i1"}}}}, "time": {AT}}}\n')
    events, _ = load_events(path, Columns("who.id", "what.item.id"))
    assert events.select("user", "item").rows() == [("u1", "i1")]
    for name in ("who.name", "who.id.more", "time.id", "nobody.id", "who."):
        with pytest.raises(DataError, match=r"no column .* Name it with --user-column"):
            load_events(path, Columns(name, "what.item.id"))


def test_items_may_be_as_in_a_bundle(tmp_path: Path) -> None:
    flat, bundled, both = (tmp_path / f"{name}.jsonl" for name in ("flat", "bundled", "both"))
    flat.write_text('{"item": "i1", "title": "One", "genres": ["Drama", "War"], "year": 1999}\n')
    bundled.write_text('{"item": "i1", "title": "One", "attributes": {"genres": ["Drama", "War"], "year": 1999}}\n')
    both.write_text('{"item": "i1", "title": "One", "attributes": {"title": "Two"}}\n')
    assert load_items(bundled, COLUMNS)[0].equals(load_items(flat, COLUMNS)[0])
    with pytest.raises(DataError, match="an attribute has the name of a column"):
        load_items(both, COLUMNS)
    with pytest.raises(DataError, match=r"no column 'nmae'.*--title-column"):
        load_items(flat, Columns(title="nmae"))
