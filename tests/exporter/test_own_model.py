"""The model of docs/your-model.md, as a user would have it: in a file of one's own."""

import json
import re
from pathlib import Path

import pytest

from exporter.cli import main
from stream_worker import cli as worker
from tests.exporter.conftest import write_events

PAGE = Path(__file__).resolve().parents[2] / "docs" / "your-model.md"


@pytest.mark.train
def test_a_model_of_ones_own_is_trained_exported_and_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "class Mean" in block)
    (tmp_path / "my_models.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    events = write_events(tmp_path / "events.csv")
    train = ["train", "--model", "my_models:Mean", "--events", str(events), "--out", "models", "--max-epochs", "2"]
    assert main(train) == 0
    Path("click.jsonl").write_text('{"user": "u", "item": "i3", "time": 1767225600000}\n')
    replay = ["replay", "--bundle", "models", "--events", "click.jsonl", "--out", "lists.jsonl"]
    assert worker.main(replay) == 0
    top = json.loads(Path("lists.jsonl").read_text())
    assert top["model"].startswith("mean-")
    assert len(top["items"]) == 20
    assert "i3" not in top["items"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "no such model. There are gru4rec, hybrid, itemknn"),
        ("no_such_module:Mean", "ModuleNotFoundError"),
        ("pathlib:Path", "no subclass of exporter.models.base.Recommender"),
    ],
)
def test_a_model_that_is_none_is_said_in_one_line(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = write_events(tmp_path / "events.csv")
    assert main(["train", "--model", name, "--events", str(events), "--out", str(tmp_path / "models")]) == 2
    assert message in capsys.readouterr().err
