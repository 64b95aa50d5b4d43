"""Histories from the warehouse, and from a state topic of other partitions: as if they had come through Kafka."""

import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from kafka import KafkaAdminClient, KafkaProducer

from demo.broker import Broker
from exporter.data import Columns, load_events
from stream_worker import warehouse
from stream_worker.changelog import Loader, Position
from stream_worker.errors import DataError, SettingsError
from stream_worker.seed import seed_events, seed_topic
from stream_worker.settings import SeedSettings
from stream_worker.state import Actions, Partition
from stream_worker.topics import partition_of
from stream_worker.transports.kafka_offline import KafkaOffline, StateWriter
from stream_worker.warehouse import Fields, Warehouse
from tests.worker.oracle import expected, fold_log
from tests.worker.process import EXCLUDING, Stage, wait_for
from tests.worker.world import exact

NOW_MS = 1_767_225_600_000
Make = Callable[[int], Stage]
State = tuple[dict[str, dict[str, Any]], dict[str, tuple[int, int]], dict[int, Position]]


@pytest.fixture
def make(broker: Broker, models: dict[str, Path], tmp_path: Path, unique: Callable[[str], str]) -> Iterator[Make]:
    """Topics of one's own with so many partitions; one after the other if called twice."""
    stages: list[Stage] = []

    def stage(partitions: int) -> Stage:
        logs = tmp_path / f"stage-{len(stages)}"
        logs.mkdir()
        stages.append(Stage(broker, models["sasrec"], logs, unique, partitions=partitions).__enter__())
        return stages[-1]

    yield stage
    for one in stages:
        one.__exit__(None, None, None)


def settings(stage: Stage, **changes: Any) -> SeedSettings:
    return SeedSettings(**{"bootstrap": stage.broker.bootstrap, "group": stage.group, **stage.names, **changes})


def run(settings: SeedSettings) -> list[str]:
    """What the command prints."""
    with KafkaOffline(settings) as kafka:
        return list((seed_events if settings.events else seed_topic)(settings, kafka))


def stored(settings: SeedSettings) -> State:
    """The users on the state topic; (applied, listed) of each; the positions."""
    actions = Actions(settings.excluding)
    users: dict[str, dict[str, Any]] = {}
    owed: dict[str, tuple[int, int]] = {}
    positions: dict[int, Position] = {}
    with KafkaOffline(settings) as kafka:
        topic = settings.state_topic
        for number, end in kafka.ends(topic).items():
            state = Partition(number, settings.history_length, settings.excluded_length, 1)
            loader = Loader(state, actions, topic)
            loader.load([record for _, record in kafka.read(topic, {number: (0, end)})])
            users |= exact(state, actions)
            for row, user in enumerate(state.users):
                if user is not None:
                    owed[user] = int(state.applied_offset[row]), int(state.listed_offset[row])
            if loader.position:
                positions[number] = loader.position
    return users, owed, positions


def some_rows(seed: int, count: int, users: int = 40) -> pl.DataFrame:
    """Events out of order, some of them twice, none in the same second by chance of the same user and item."""
    rng = np.random.default_rng(seed)
    frame = pl.DataFrame(
        {
            "user": [f"u{number}" for number in rng.integers(users, size=count)],
            "item": [f"i{number}" for number in rng.integers(60, size=count)],
            "action": rng.choice(["view", "click", "purchase", "hide", "wave"], count),
            "time": NOW_MS - rng.integers(10_000_000, size=count) * 1000,
        }
    )
    return pl.concat([frame, frame.sample(count // 10, seed=seed % 2**32)])


@pytest.mark.parametrize("window_rows", [50, 5000])  # folded one by one, and by column
def test_seeded_users_are_as_if_their_events_had_come_through_kafka_in_time_order(
    make: Make, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch, window_rows: int
) -> None:
    monkeypatch.setattr(warehouse, "CHUNK_ROWS", 300)
    monkeypatch.setattr(warehouse, "WINDOW_ROWS", window_rows)
    rows, stage = some_rows(seed, 2000), make(3)
    for part, path in enumerate(("b.parquet", "a/c.parquet")):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        rows[part * 1000 : (part + 1) * 1000 if part == 0 else None].write_parquet(tmp_path / path)
    stage.send([(f"u{number}", "i1") for number in range(30)])  # so that there is something to begin after
    with KafkaOffline(settings(stage, events=["-"])) as kafka:
        ends = kafka.ends(stage.names["events_topic"])
    wanted = settings(
        stage,
        events=[str(tmp_path / "b.parquet"), str(tmp_path / "a")],
        until=",".join(f"{number}:{end}" for number, end in ends.items()),
        history_length=20,
        excluded_length=4,
    )
    lines = run(wanted)
    assert lines[0] == f"{rows.height:,} rows of 2 files read"

    users, offsets, positions = stored(wanted)
    logs: dict[int, list[dict[str, Any]]] = {number: [] for number in range(3)}
    for row in rows.sort("time", maintain_order=True).iter_rows(named=True):
        logs[partition_of(row["user"].encode(), 3)].append({**row, "received": row["time"]})
    for number, log in logs.items():
        for user, one in fold_log(log, 20, 4, EXCLUDING).items():
            plain = expected(one)
            plain["applied"] += ends[number] - len(log)
            assert users.pop(user) == plain
    assert not users
    assert all(listed == applied - 1 for applied, listed in offsets.values())
    assert {number: one.next_offset for number, one in positions.items()} == ends
    assert {one.folded_offset - ends[number] for number, one in positions.items()} == {0}


def test_on_day_one_nobody_is_cold_and_nothing_is_folded_twice(make: Make, tmp_path: Path, seed: int) -> None:
    stage, rows = make(3), some_rows(seed, 500)
    rows.write_parquet(tmp_path / "events.parquet")
    for row in rows.filter(user="u1").iter_rows(named=True):  # the topic still holds some of what the file holds
        stage.send_raw(msgspec.json.encode(row), b"u1")
    run(settings(stage, events=[str(tmp_path / "events.parquet")]))
    worker = stage.worker()
    users = set(rows["user"])
    wait_for("a list of each", lambda: stage.lists().keys() == users)
    stage.send([("u1", "i59"), ("u-new", "i3")])
    before = rows.filter(user="u1").unique(["item", "action", "time"]).height
    wait_for("a newer list", lambda: stage.lists()["u1"].events == before + 1)
    wait_for("a list of the new one", lambda: stage.lists().keys() == {*users, "u-new"})
    worker.terminate()
    again = stage.worker()
    wait_for("the users", lambda: again.metric("users") == len(users) + 1)


def test_no_lists_means_none_before_the_next_event(make: Make, tmp_path: Path, seed: int) -> None:
    stage, rows = make(2), some_rows(seed, 200)
    rows.write_parquet(tmp_path / "events.parquet")
    wanted = settings(stage, events=[str(tmp_path / "events.parquet")], lists=False, epoch=3)
    run(wanted)
    _, offsets, positions = stored(wanted)
    assert all(applied == listed for applied, listed in offsets.values())
    assert {one.epoch for one in positions.values()} == {3}
    stage.worker()
    stage.send([("u1", "i59")])
    wait_for("one list", lambda: stage.lists().keys() == {"u1"})
    assert stage.lists()["u1"].epoch == 3


def test_the_bounds_of_memory_hold_for_the_seed_too(make: Make, tmp_path: Path, seed: int) -> None:
    stage, rows = make(1), some_rows(seed, 1000)
    rows.write_parquet(tmp_path / "events.parquet")
    wanted = settings(stage, events=[str(tmp_path / "events.parquet")], max_users_per_partition=7)
    lines = run(wanted)
    assert "users evicted" in lines[1]
    users, offsets, _ = stored(wanted)
    last = rows.sort("time", maintain_order=True).unique("user", keep="last", maintain_order=True)["user"]
    assert users.keys() == set(last[-7:])
    assert sorted(offsets, key=lambda user: offsets[user][0]) == last[-7:].to_list()


def write(path: Path, **columns: Any) -> str:
    pl.DataFrame(columns).write_parquet(path)
    return str(path)


def loaded(path: str, tmp_path: Path, fields: Fields = Fields()) -> tuple[Warehouse, list[tuple[Any, ...]]]:  # noqa: B008
    spill = tmp_path / f"spill-{time.monotonic_ns()}"
    spill.mkdir()
    found = Warehouse([path], fields, lambda user: partition_of(user.encode(), 2), NOW_MS + 1, spill)
    found.load()
    rows = [row for number in range(2) for window in found.events(number) for row in zip(*window, strict=True)]
    return found, rows


def test_rows_that_are_no_events_are_counted_by_reason(tmp_path: Path) -> None:
    good = ("u1", "i1", "view", NOW_MS)
    bad: dict[str, tuple[str | None, str | None, str | None, int | None]] = {
        "no user": (None, "i1", "view", NOW_MS),
        "no item": ("u1", "", "view", NOW_MS),
        "bad user (over 256 bytes, control characters, or '*')": ("*", "i1", "view", NOW_MS),
        "bad item (over 256 bytes, or control characters)": ("u1", "i\n", "view", NOW_MS),
        "bad action (over 64 bytes, or control characters)": ("u1", "i1", "v" * 65, NOW_MS),
        "no time": ("u1", "i1", "view", None),
        "time before 1990 or after 2105": ("u1", "i1", "view", 1),
        "time in the future": ("u1", "i1", "view", NOW_MS + 2),
    }
    rows = [good, *bad.values(), ("u1", None, "forget", NOW_MS)]
    names = ("user", "item", "action", "time")
    path = write(tmp_path / "events.parquet", **dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    found, events = loaded(path, tmp_path)
    assert dict(found.dropped) == dict.fromkeys(bad, 1)
    assert found.read == len(rows)
    assert events == [good, ("u1", None, "forget", NOW_MS)]


@pytest.mark.parametrize(
    "times",
    [
        [NOW_MS, NOW_MS - 1000],
        [NOW_MS // 1000, NOW_MS // 1000 - 1],
        [datetime(2026, 1, 1, tzinfo=UTC), datetime(2025, 12, 31, 23, 59, 59, tzinfo=UTC)],
        ["2026-01-01T00:00:00Z", "2026-01-01 00:59:59+01:00"],
    ],
)
def test_the_seed_reads_a_file_as_the_trainer_does(tmp_path: Path, times: list[Any]) -> None:
    path = write(tmp_path / "events.parquet", user=[7, 8], item=["a", "b"], time=times)
    _, events = loaded(path, tmp_path)
    trained, _ = load_events(Path(path), Columns())
    assert sorted(events) == sorted(trained.select("user", "item", "action", "time").iter_rows())


def test_nested_and_other_columns_are_named_by_the_events_settings(tmp_path: Path) -> None:
    path = write(tmp_path / "e.parquet", who=[{"id": "u1"}], product=["i1"], did=["buy"], **{"a.b": [NOW_MS]})
    _, events = loaded(path, tmp_path, Fields("who.id", "product", "did", "a.b"))
    assert events == [("u1", "i1", "buy", NOW_MS)]
    with pytest.raises(DataError, match=r"no column 'doing'.*--event-action-field"):
        loaded(path, tmp_path, Fields("who.id", "product", "doing", "a.b"))


def test_users_are_placed_where_producers_put_their_events(make: Make) -> None:
    stage = make(4)
    producer = KafkaProducer(bootstrap_servers=stage.broker.bootstrap)
    users = [f"user-{'ü' * (number % 5)}{number}".encode() for number in range(200)]
    futures = [producer.send(stage.names["events_topic"], b"{}", user) for user in users]
    found = [future.get(timeout=10).partition for future in futures]
    producer.close(timeout=5)
    assert found == [partition_of(user, 4) for user in users]


def test_what_cannot_be_seeded_is_refused_with_what_to_do(make: Make, tmp_path: Path) -> None:
    stage = make(2)
    path = write(tmp_path / "events.parquet", user=["u1"], item=["i1"], time=[NOW_MS])
    (tmp_path / "broken.parquet").write_bytes(b"no")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"events": [path], "until": "0:0"}, "name an offset for each partition"),
        ({"events": [path], "until": "0:0,1:1"}, "within 0:0 to 0, 1:0 to 0"),
        ({"events": [str(tmp_path / "none*")]}, "no such Parquet file"),
        ({"events": [str(tmp_path / "broken.parquet")]}, "not readable as Parquet"),
        ({"events": [path], "state_topic": "nowhere"}, "topics --create"),
        ({"from_topic": "nowhere"}, "there is no such topic"),
        ({"from_topic": stage.names["state_topic"]}, "has no position"),
    ]
    for changes, message in cases:
        with pytest.raises(DataError, match=message):
            run(settings(stage, **changes))
    with pytest.raises(ValueError, match="name either --events or --from-topic"):
        settings(stage)
    with pytest.raises(ValueError, match="partition:offset"):
        settings(stage, events=[path], until="0=7")
    with pytest.raises(ValueError, match="spill_directory"):
        settings(stage, events=[path], spill_directory=tmp_path / "none")

    run(settings(stage, events=[path]))
    with pytest.raises(DataError, match="is not empty"):
        run(settings(stage, events=[path]))
    worker = stage.worker()
    fresh = {"state_topic": stage.names["state_topic"] + "-2"}
    admin = KafkaAdminClient(bootstrap_servers=stage.broker.bootstrap)
    options = {"num_partitions": 2, "replication_factor": 1, "configs": {"cleanup.policy": "compact"}}
    admin.create_topics({fresh["state_topic"]: options}, wait_for_metadata=True)
    admin.close()
    with pytest.raises(DataError, match="has workers"):
        run(settings(stage, events=[path], **fresh))
    worker.kill()


def test_an_interrupted_seed_is_recognised_by_seed_and_worker(
    make: Make, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make(2)
    some_rows(seed, 300).write_parquet(tmp_path / "events.parquet")
    wanted = settings(stage, events=[str(tmp_path / "events.parquet")])

    class Killed(StateWriter):
        def write(self, changes: Any) -> int:
            changes = list(changes)
            if changes[0].key.startswith(b"\0"):
                raise KeyboardInterrupt
            return super().write(changes)

    monkeypatch.setattr("stream_worker.seed.StateWriter", Killed)
    with pytest.raises(KeyboardInterrupt):
        run(wanted)
    users, _, positions = stored(wanted)
    assert users
    assert not positions
    with pytest.raises(DataError, match="after a seed that was interrupted"):
        run(wanted)
    worker = stage.worker(ready=False)
    assert worker.process.wait(60) == 4
    assert "a seed was interrupted" in worker.log.read_text()


def test_polars_is_asked_for_by_the_name_of_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stream_worker.warehouse", None)
    wanted = SeedSettings(events=["x.parquet"])
    with pytest.raises(SettingsError, match="the extra `seed`"):
        list(seed_events(wanted, KafkaOffline(wanted)))


def test_users_move_to_more_partitions_without_a_lost_event(make: Make, seed: int) -> None:
    """docs/operations.md, step by step."""
    old, new = make(2), make(5)
    new.names["recommendations_topic"] = old.names["recommendations_topic"]
    new.flags = [text for name, topic in new.names.items() for text in (f"--{name.replace('_', '-')}", topic)]
    new.second += 100_000  # no second is used twice
    rng = np.random.default_rng(seed)

    def events(count: int) -> list[tuple[str, str]]:
        return [(f"u{rng.integers(80)}", f"i{rng.integers(60)}") for _ in range(count)]

    first = old.worker()
    old.send(events(1500))
    wait_for("all lists", old.covered)
    new.send(events(200))  # the producers have switched
    wanted = settings(new, from_topic=old.names["state_topic"], group=old.group)
    with pytest.raises(DataError, match="has workers"):
        run(wanted)
    there = settings(old, events=["unread.parquet"])
    wait_for("a checkpoint of both partitions", lambda: len(stored(there)[2]) == 2)
    first.kill()
    old.send([("u1", "i7")])  # a late one
    wait_for("out of the group", lambda: members(wanted) == 0)
    with pytest.raises(DataError, match=r"are not folded: .*\d of partition \d"):
        run(wanted)
    last = old.worker()
    wait_for("all lists", old.covered)
    assert last.terminate()[0] == 0
    lines = run(wanted)
    assert lines[0].endswith(f"all of {old.names['events_topic']} is folded")
    assert ", epoch 1; workers begin at 0:0,1:0,2:0,3:0,4:0" in lines[-1]

    workers = [new.worker("--group", old.group), new.worker("--group", old.group)]
    new.send(events(300))
    before, since = old.expected(), new.expected()
    counts = {user: before[user].events if user in before else 0 for user in before | since}
    for user, one in since.items():
        counts[user] += one.events

    def settled() -> bool:
        lists = new.lists()
        return all(lists[user].offset == one.applied for user, one in since.items() if user in lists) and (
            {user: top.events for user, top in lists.items()} == counts
        )

    wait_for("all lists", settled)
    for worker in workers:
        assert worker.terminate()[0] == 0
    users, _, _ = stored(settings(new, from_topic="-"))
    log = [*history(old), *history(new)]
    plain = {user: expected(one)["history"] for user, one in fold_log(log, 64, 32, EXCLUDING).items()}
    assert {user: one["history"] for user, one in users.items()} == plain
    assert {top.epoch for user, top in new.lists().items() if user in since} == {1}


def history(stage: Stage) -> list[dict[str, Any]]:
    """The events of a stage, those of a user in the order of the log."""
    records = sorted(stage.records("events_topic"), key=lambda record: (record.partition, record.offset))
    return [{"action": "view", **msgspec.json.decode(record.value), "received": record.timestamp} for record in records]


def members(settings: SeedSettings) -> int:
    with KafkaOffline(settings) as kafka:
        return kafka.members()
