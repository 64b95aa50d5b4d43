"""The commands as a user types them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from exporter.cli import main
from stream_worker.bundle import Bundle
from stream_worker.manifest import (
    ITEMS,
    MANIFEST,
    MODEL,
    Manifest,
    find_bundle,
    read_manifest,
    sha256_of,
    write_manifest,
)
from tests.exporter.conftest import write_events


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_events(tmp_path_factory.mktemp("events") / "events.csv")


@pytest.fixture(scope="module")
def exported(events: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models")
    assert main(["train", "--events", str(events), "--model", "popularity", "--out", str(out)]) == 0
    return out


@pytest.fixture
def models(exported: Path, tmp_path: Path) -> Path:
    """A directory with a small bundle, to tamper with."""
    return shutil.copytree(exported, tmp_path / "models")


def test_train_writes_a_bundle_that_verifies(events: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = tmp_path / "models"
    assert main(["train", "--events", str(events), "--model", "popularity", "--out", str(models)]) == 0
    out = capsys.readouterr().out
    assert "720 read, 720 kept" in out
    assert "popularity" in out
    assert f"bundle: {find_bundle(models)}" in out
    assert main(["verify", str(models)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("OK   ") for line in lines)


@pytest.mark.train
def test_the_default_model_from_files_to_a_bundle_in_a_process_of_its_own(events: Path, tmp_path: Path) -> None:
    items = tmp_path / "items.jsonl"
    items.write_text("".join(f'{{"item": "i{n}", "title": "Item {n}", "tag": "x"}}\n' for n in range(40)))
    out = tmp_path / "models"
    command = [
        sys.executable,
        "-m",
        "exporter",
        "train",
        "--events",
        str(events),
        "--items",
        str(items),
        "--out",
        str(out),
    ]
    small = ["--length", "12", "--dim", "16", "--max-epochs", "2", "--list-length", "5", "--repeat-purchases"]
    done = subprocess.run(command + small, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "epoch 2: loss" in done.stdout, "plain lines where there is no terminal"
    assert "\x1b" not in done.stdout
    bundle = Bundle(out)
    manifest = bundle.manifest
    assert (manifest.name, manifest.items, manifest.L, manifest.K, manifest.D) == ("hybrid", 40, 12, 5, 16)
    assert manifest.excluding_actions == ["dislike", "hide"]
    assert manifest.exclude_seen
    assert set(manifest.report) == {
        prefix + name
        for prefix in ("", "popularity_", "served_", "served_popularity_")
        for name in ("hr@10", "ndcg@10", "mrr")
    }
    assert bundle.rows[7].title == "Item 7"
    assert bundle.rows[7].attributes == {"tag": "x"}
    assert {path.name for path in out.iterdir()} == {"current.json", bundle.path.name}
    assert os.access(bundle.path, os.R_OK | os.X_OK)


def test_without_an_items_file_only_items_of_the_training_part_are_known(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    lines = [f"u{n % 5},{'old' if n < 80 else 'new'}{n % 7},{1_700_000_000 + n}" for n in range(100)]
    path.write_text("user,item,time\n" + "\n".join(lines))
    assert main(["train", "--events", str(path), "--model", "popularity", "--out", str(tmp_path / "out")]) == 0
    assert {row.item for row in Bundle(tmp_path / "out").rows} == {f"old{n}" for n in range(7)}


def test_all_events_may_be_trained_on(events: Path, tmp_path: Path) -> None:
    arguments = ["--events", str(events), "--model", "popularity", "--out", str(tmp_path), "--train-share", "1"]
    assert main(["train", *arguments]) == 0
    assert read_manifest(find_bundle(tmp_path)).report == {}


def test_what_excludes_an_item_may_be_chosen_and_workers_are_to_be_told(
    events: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", "--events", str(events), "--model", "popularity", "--out", str(tmp_path)]
    assert main(train) == 0
    assert "workers:" not in capsys.readouterr().out
    assert main([*train, "--excluding-actions", "order, hide"]) == 0
    assert "serve it with --excluding-actions hide,order" in capsys.readouterr().out
    assert read_manifest(find_bundle(tmp_path)).excluding_actions == ["hide", "order"]


@pytest.mark.parametrize("name", [MODEL, ITEMS, "items.jsonl", "example.npz"])
def test_verify_names_the_file_that_was_changed(models: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = find_bundle(models) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    capsys.readouterr()
    assert main(["verify", str(models)]) == 3
    stderr = capsys.readouterr().err
    assert name in stderr
    assert "changed since it was exported" in stderr
    assert stderr.count("\n") == 1


def test_verify_finds_items_swapped_behind_a_mended_hash(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = find_bundle(models)
    np.savez(bundle / ITEMS, item_bias=Bundle(bundle).items.tensors["item_bias"][:31][::-1])
    manifest = msgspec.json.decode((bundle / MANIFEST).read_bytes(), type=Manifest)
    files = {**manifest.files, ITEMS: sha256_of(bundle / ITEMS)}
    write_manifest(bundle, msgspec.structs.replace(manifest, files=files))
    assert main(["verify", str(bundle)]) == 3
    assert "differ" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "--out", "OUT"], 2, "--events"),
        (["train", "--events", "EVENTS", "--out", "OUT", "--speed", "9"], 2, "--speed"),
        (["train", "--events", "EVENTS", "--out", "OUT", "--dropout", "2"], 2, "--dropout"),
        (["train", "--events", "EVENTS", "--out", "OUT", "--model", "oracle"], 2, "There are gru4rec, hybrid, itemknn"),
        (["train", "--events", "EVENTS", "--out", "EVENTS"], 2, "--out"),
        (["train", "--events", "absent.csv", "--out", "OUT"], 4, "absent.csv: no such file"),
        (["train", "--events", "EVENTS", "--out", "OUT", "--user-column", "who"], 4, "There are user, item, time"),
        (["train", "--events", "EVENTS", "--items", "EVENTS", "--item-column", "x", "--out", "OUT"], 4, "'x'"),
        (["verify", "absent"], 3, "no manifest.json and no current.json"),
        (["verify"], 2, "BUNDLE"),
        (["polish"], 2, "'polish' is no command. There are train, verify"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    arguments: list[str], code: int, message: str, events: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"EVENTS": str(events), "OUT": str(tmp_path / "out")}
    assert main([places.get(word, word) for word in arguments]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("exporter: ")
    assert captured.err.count("\n") == 1


def test_help_lists_the_commands_and_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "exporter COMMAND [flags]" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--help"])
    assert stopped.value.code == 0
    assert "--max-minutes" in capsys.readouterr().out
