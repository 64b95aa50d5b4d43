"""`stream-worker doctor` on a real Kafka: what it says, what it exits with, and that it leaves no trace."""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from kafka import KafkaAdminClient

from demo.broker import Broker
from stream_worker.errors import TransportError
from stream_worker.events import Events
from stream_worker.findings import Finding, exit_code, table
from stream_worker.manifest import find_bundle
from stream_worker.state import NAME_BYTES, Partition, bytes_of_user
from stream_worker.transports.kafka_doctor import judge_clock
from tests.worker.process import Stage, wait_for


class Visit:
    """One run of the command."""

    def __init__(self, *flags: str, **variables: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "stream_worker", "doctor", *flags],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=os.environ | variables,
        )
        self.code, self.output, self.errors = done.returncode, done.stdout, done.stderr
        assert "Traceback" not in self.errors, self.errors

    def state_of(self, what: str) -> str:
        """The first column of a row."""
        rows = [line for line in self.output.splitlines() if line[9:].startswith(f"{what} ")]
        assert len(rows) == 1, f"{what!r} in\n{self.output}{self.errors}"
        return rows[0].split()[0]


@pytest.fixture
def stage(broker: Broker, models: Mapping[str, Path], tmp_path: Path, unique: Callable[[str], str]) -> Iterator[Stage]:
    """Topics as they must be."""
    with Stage(broker, models["popularity"], tmp_path, unique, partitions=3) as stage:
        yield stage


def flags(stage: Stage, bundle: Path | None = None) -> list[str]:
    """Those of a worker on it."""
    where = ["--bootstrap", stage.bootstrap, "--group", stage.group]
    return ["--bundle", str(bundle or stage.bundle), *where, *stage.flags]


ALL = ("settings", "libraries", "bundle", "device", "lengths", "example", "broker", "permissions", "transactions")


def test_a_healthy_setup_is_all_fine_and_nothing_is_written(stage: Stage) -> None:
    stage.send([("u1", "i1")])
    visit = Visit(*flags(stage))
    rows = [*ALL, "clock", "memory", *(f"topic {name}" for name in stage.names.values())]
    assert {row: visit.state_of(row) for row in rows} == dict.fromkeys(rows, "fine")
    assert (visit.code, visit.errors) == (0, "")
    assert visit.output.endswith(f"\nall {len(rows)} fine\n")
    assert "\x1b" not in visit.output
    assert [len(stage.records(topic)) for topic in stage.names] == [1, 0, 0, 0]


def test_a_visit_disturbs_no_worker(stage: Stage) -> None:
    worker = stage.worker("--group-instance-id", "pod-0")
    stage.send([("u1", "i1")])
    wait_for("a list", stage.covered)
    assert Visit(*flags(stage), "--group-instance-id", "pod-0").code == 0
    stage.send([("u1", "i2"), ("u2", "i1")])
    wait_for("lists", stage.covered)
    assert worker.terminate()[0] == 0


def test_a_missing_topic_is_named_with_its_mend(stage: Stage) -> None:
    admin = KafkaAdminClient(bootstrap_servers=stage.bootstrap)
    admin.delete_topics([stage.names["rejected_topic"]])
    admin.close()
    visit = Visit(*flags(stage))
    assert visit.code == 4
    assert visit.state_of(f"topic {stage.names['rejected_topic']}") == "wrong"
    assert visit.state_of(f"topic {stage.names['events_topic']}") == "fine"
    assert "missing: run `stream-worker topics --create`" in visit.output


def test_another_number_of_partitions_is_wrong(stage: Stage) -> None:
    admin = KafkaAdminClient(bootstrap_servers=stage.bootstrap)
    admin.create_partitions({stage.names["state_topic"]: 5})
    admin.close()
    visit = Visit(*flags(stage))
    assert (visit.code, visit.state_of(f"topic {stage.names['state_topic']}")) == (4, "wrong")
    assert "has 5 partitions, but" in visit.output


def test_an_absent_broker_leaves_the_rest_looked_at(stage: Stage) -> None:
    visit = Visit(*flags(stage), "--bootstrap", "127.0.0.1:9")
    found = {what: visit.state_of(what) for what in ("bundle", "example", "broker", "topics", "permissions", "clock")}
    assert found == {
        "bundle": "fine", "example": "fine",
        "broker": "wrong", "topics": "skipped", "permissions": "skipped", "clock": "skipped",
    }  # fmt: skip
    assert (visit.code, visit.errors) == (4, "")
    assert "Is it running" in visit.output


def test_a_broken_bundle_leaves_the_topics_looked_at(stage: Stage, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(find_bundle(stage.bundle), broken)
    content = bytearray((broken / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (broken / "model.onnx").write_bytes(content)
    visit = Visit(*flags(stage, broken))
    assert (visit.code, visit.state_of("bundle"), visit.state_of("example")) == (3, "wrong", "skipped")
    assert visit.state_of(f"topic {stage.names['events_topic']}") == "fine"


def test_settings_that_a_worker_refuses_are_refused(stage: Stage) -> None:
    short = Visit(*flags(stage), "--history-length", "3")
    assert (short.code, short.state_of("lengths")) == (3, "wrong")
    assert "--history-length keeps 3. Raise it" in " ".join(short.output.split())
    assert Visit(*flags(stage), "--no-such-flag").code == 2
    assert Visit(*flags(stage), STREAM_WORKER_TYPO="1").code == 2


def test_memory_counts_what_the_model_keeps_of_users(stage: Stage, models: Mapping[str, Path]) -> None:
    bundle = models["streaming-transformer"]
    assert Visit(*flags(stage, bundle)).state_of("memory") == "fine"
    assert Visit(*flags(stage, bundle), "--vector-cache-users", str(10**8)).state_of("memory") == "unwise"


def test_the_clock_is_judged_by_an_event_of_the_future() -> None:
    now = 1_800_000_000_000
    assert [judge_clock(now + ahead, now).state for ahead in (-3_600_000, -50, 400, 2000, 4000)] == [
        "fine", "fine", "fine", "unwise", "wrong",
    ]  # fmt: skip
    assert "ahead by 2.0 s at most" in judge_clock(now - 2000, now).text
    assert "at least 4.0 s behind" in judge_clock(now + 4000, now).text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_table_is_aligned_and_coloured_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [
        Finding("a", "well " * 40),
        Finding("broker", "odd", "unwise"),
        Finding.of("topic x", TransportError("gone")),
    ]
    plain = table(findings, io.StringIO())
    lines = plain.splitlines()
    assert {line[:18].strip() for line in lines[:2]} == {"fine     a", ""}
    assert [line[18:22] for line in lines[:2]] == ["well", "well"]
    assert lines[-1] == "1 wrong, 1 unwise, 1 fine"
    assert "\x1b" not in plain
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[31mwrong" in table(findings, Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in table(findings, Terminal())
    assert (exit_code(findings), exit_code(findings[:2])) == (4, 0)


def test_the_memory_of_a_user_is_that_of_a_full_slab() -> None:
    partition = Partition(0, 64, 32, 20)
    events = Events()
    for number in range(256):
        events.add(f"u{number}", 1, 1, 0, number, 1)
    partition.fold(events, [False])
    assert partition.nbytes // 256 == pytest.approx(bytes_of_user(64, 32, 20) - NAME_BYTES, rel=0.05)
