"""The demo as a user runs it: from a file of events to a summary, and nothing left behind."""

import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from kafka import KafkaAdminClient

from demo.broker import ROOT, Broker, port_in_use
from tests.demo.test_preflight import free_ports

pytestmark = pytest.mark.kafka

LINE = re.compile(r"^ +0:\d\d( +[\d,.-]+){9}$", re.MULTILINE)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for the module: a second run finds what the first has made."""
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def events(directory: Path, seed: int) -> Path:
    rng = random.Random(seed)
    rows = [f"u{rng.randrange(40)},i{min(60, int(rng.paretovariate(1)))},{10**9 + 7 * n}" for n in range(5000)]
    path = directory / "events.csv"
    path.write_text("\n".join(["user,item,time", *rows]))
    return path


def start(directory: Path, events: Path, **variables: str) -> "subprocess.Popen[str]":
    ours = {"DEMO_EVENTS": str(events), "DEMO_MODEL": "popularity", "DEMO_DIR": str(directory)}
    return subprocess.Popen(
        [sys.executable, "-m", "demo"], cwd=ROOT, env=os.environ | ours | variables, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def processes_of(directory: Path) -> list[str]:
    """Command lines that name the demo's directory; every child's does."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has just ended
            continue
        if str(directory) in command:
            found.append(command)
    return found


def check_all_is_gone(directory: Path, ports: dict[str, str]) -> None:
    assert processes_of(directory) == []
    kafka, http = int(ports["KAFKA_PORT"]), int(ports["HTTP_PORT"])
    assert not [port for port in (kafka, http, http + 1) if port_in_use(port)]


def test_from_events_to_a_summary(directory: Path, events: Path) -> None:
    ports = free_ports()
    with start(directory, events, DURATION="3", **ports) as process:
        output, _ = process.communicate(timeout=150)
    assert process.returncode == 0, output
    assert len(LINE.findall(output)) >= 2, output
    for part in (
        "the first 4,000 train", "the last 1,000", "training popularity", "checks passed", "worker 2",
        "HR@10", "NDCG@10", "kcat -b", "own lists (", "lists for", "logs ", "make demo RATE=",
    ):  # fmt: skip
        assert part in output
    (sent,) = re.findall(r"streamed +([\d,]+) events in", output)
    assert 500 <= int(sent.replace(",", "")) <= 601, "3 s at 200 events/s"
    check_all_is_gone(directory, ports)


def test_ctrl_c_ends_it_in_order_on_a_broker_that_stays_as_it_was(
    directory: Path, events: Path, broker: Broker
) -> None:
    """By now the bundle is there (or is made again, where this test runs alone)."""
    ports = free_ports()
    before = topics(broker)
    with start(directory, events, BOOTSTRAP=broker.bootstrap, **ports) as process:
        assert process.stdout
        for line in process.stdout:
            if LINE.match(line):
                break
        process.send_signal(signal.SIGINT)
        output = process.stdout.read()
        assert process.wait(30) == 0, output
    assert "stopping the workers" in output
    assert "streamed" in output
    assert topics(broker) == before
    check_all_is_gone(directory, ports)


def test_a_worker_that_cannot_start_is_heard_and_nothing_stays(directory: Path, events: Path, broker: Broker) -> None:
    ports = free_ports()
    variables = {"BOOTSTRAP": broker.bootstrap, "STREAM_WORKER_DELIVERY_TIMEOUT_S": "50"} | ports
    with start(directory, events, **variables) as process:
        output, _ = process.communicate(timeout=150)
    assert process.returncode == 1, output
    assert re.search(r"^demo: worker \d ended \(exit code \d\): .*delivery_timeout_s", output, re.MULTILINE), output
    assert "Traceback" not in output
    check_all_is_gone(directory, ports)


def topics(broker: Broker) -> set[str]:
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    try:
        return {name for name in admin.list_topics() if name.startswith("demo-")}
    finally:
        admin.close()
