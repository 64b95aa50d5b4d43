"""docs/tutorial.md, as somebody would follow it: its commands in their order, on a real Kafka."""

import os
import re
import subprocess
import sys
from pathlib import Path

import polars as pl

from demo.broker import Broker
from tests import needs
from tests.worker.process import wait_for

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
FETCH = "python -m demo.movielens .cache/movielens\n"


def ratings(folder: Path) -> None:
    """In place of MovieLens, which would have to be fetched: the same columns."""
    folder.mkdir(parents=True)
    rows = [
        (f"u{user}", str(40 + (user + step) % 30), 1_767_225_600 + 60 * step)
        for user in range(60)
        for step in range(20)
    ]
    columns = ["user", "item", "time"]
    pl.DataFrame(rows, columns, orient="row").with_columns(action=pl.lit("view")).write_parquet(
        folder / "events.parquet"
    )
    items = [{"item": str(item), "title": f"Film {item}", "genres": ["Drama"], "year": 1990} for item in range(40, 70)]
    pl.DataFrame(items).write_parquet(folder / "items.parquet")


def test_the_tutorial_leads_to_a_list(own_broker: Broker, tmp_path: Path) -> None:
    needs.command("kcat")
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.S)
    train, topics, click, read = blocks
    assert FETCH in train
    ratings(tmp_path / ".cache" / "movielens")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    where = {"STREAM_WORKER_BOOTSTRAP": own_broker.bootstrap, "STREAM_WORKER_HTTP_PORT": "0"}
    environment = os.environ | where | {"PATH": path, "PYTHONPATH": str(ROOT)}

    def follow(block: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True,
            timeout=150, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    follow(train.replace(FETCH, ""))
    checked = follow(topics.replace("localhost:9092", own_broker.bootstrap))
    assert "wrong" not in checked
    (run,) = re.findall(r"^    (stream-worker run .*)$", PAGE.read_text(), re.M)
    log = tmp_path / "worker.log"
    with log.open("w") as out:
        command = ["exec", *run.replace("localhost:9092", own_broker.bootstrap).split()]
        worker = subprocess.Popen(["bash", "-c", " ".join(command)], cwd=tmp_path, env=environment, stderr=out)
    try:
        wait_for("ready", lambda: '"event": "ready"' in log.read_text())
        follow(click)
        assert re.search(r"^\[('\d+', )+'\d+'\] \d+ ms after the click$", follow(read), re.M)
    finally:
        worker.kill()
        worker.wait(60)
