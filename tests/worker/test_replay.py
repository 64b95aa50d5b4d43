"""`stream-worker replay`: files in, files out, the same twice."""

import json
from pathlib import Path

import pytest

from stream_worker.batch import Feeds
from stream_worker.bundle import Bundle
from stream_worker.cli import main
from tests.worker.world import START_MS


@pytest.fixture
def events(tmp_path: Path) -> Path:
    """Three good lines, a blank one and a bad one."""
    path = tmp_path / "events.jsonl"
    lines = [{"user": user, "item": item, "time": START_MS + second * 1000} for second, (user, item) in enumerate(
        [("u1", "i1"), ("u2", "i2"), ("u1", "i3")])]  # fmt: skip
    path.write_text("\n".join([json.dumps(lines[0]), "", json.dumps(lines[1]), "{bad", json.dumps(lines[2])]) + "\n")
    return path


def replay(bundle: Path, events: Path, out: Path, *flags: str) -> int:
    return main(["replay", "--bundle", str(bundle), "--events", str(events), "--out", str(out), *flags])


def test_lists_and_rejects_are_written_and_counted(
    models: dict[str, Path], events: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lists.jsonl"
    assert replay(models["sasrec"], events, out) == 0
    lists = [json.loads(line) for line in out.read_text().splitlines()]
    assert {one["user"]: one["events"] for one in lists} == {"u1": 2, "u2": 1}
    assert {one["user"]: one["offset"] for one in lists} == {"u1": 4, "u2": 2}
    (reject,) = [json.loads(line) for line in (tmp_path / "lists.jsonl.rejected").read_text().splitlines()]
    assert reject["value"] == "{bad"
    assert reject["headers"]["__connect.errors.offset"] == "3"
    assert capsys.readouterr().out == "3 events, 2 lists, 1 rejected, 0 duplicates, 0 late, 0 unknown\n"


def test_a_replay_prints_the_same_twice_and_one_event_a_poll_gives_every_list(
    models: dict[str, Path], events: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    for out in (first, second):
        assert replay(models["sasrec"], events, out, "--max-poll-records", "1") == 0
    assert first.read_bytes() == second.read_bytes()
    lists = [json.loads(line) for line in first.read_text().splitlines()]
    assert [(one["user"], one["events"]) for one in lists] == [("u1", 1), ("u2", 1), ("u1", 2)]


def test_every_user_of_a_large_file_has_a_list(models: dict[str, Path], tmp_path: Path) -> None:
    path, out = tmp_path / "many.jsonl", tmp_path / "out.jsonl"
    path.write_text("".join(f'{{"user": "u{n}", "item": "i{n % 50}", "time": {START_MS + n}}}\n' for n in range(4000)))
    assert replay(models["sasrec"], path, out, "--max-poll-records", "4000", "--drain-timeout-s", "0.01") == 0
    assert len({json.loads(line)["user"] for line in out.read_text().splitlines()}) == 4000


def test_settings_are_held_to_the_bundle(
    models: dict[str, Path], events: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(models["sasrec"], events, tmp_path / "out", "--history-length", "9") == 3
    assert "looks at 10 events, but --history-length keeps 9" in capsys.readouterr().err
    assert replay(models["sasrec"], events, tmp_path / "out", "--list-length", "6") == 2
    assert "--list-length 6: the bundle's lists have 5 items at most" in capsys.readouterr().err


def test_no_inference_is_of_more_users_than_asked_for(
    models: dict[str, Path], events: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    infer = Bundle.infer

    def note(bundle: Bundle, feeds: Feeds) -> Feeds:
        sizes.append(len(feeds["history_items"]))
        return infer(bundle, feeds)

    monkeypatch.setattr(Bundle, "infer", note)
    assert replay(models["sasrec"], events, tmp_path / "many.jsonl") == 0
    assert sizes[-1] == 2
    assert replay(models["sasrec"], events, tmp_path / "one.jsonl", "--batch-users", "1") == 0
    assert sizes[-2:] == [1, 1]


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == main(["--version"]) == 0
    out = capsys.readouterr().out
    assert "replay" in out
    with pytest.raises(SystemExit, match="0"):
        main(["run", "--help"])
    assert "--history-length" in capsys.readouterr().out
