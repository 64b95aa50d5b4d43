"""The demo as a user runs it: from a file of events to a summary, and nothing left behind."""

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from kafka import KafkaAdminClient

from demo.broker import ROOT, Broker, port_in_use
from tests.demo.test_preflight import free_ports

pytestmark = pytest.mark.kafka

LINE = re.compile(r"^ +0:\d\d( +[\d,.-]+){9}$", re.MULTILINE)


@pytest.fixture
def directory(demo_variables: dict[str, str]) -> Path:
    """A second run finds what the first has made."""
    return Path(demo_variables["DEMO_DIR"])


def start(demo_variables: dict[str, str], **variables: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "demo"], cwd=ROOT, env=os.environ | demo_variables | variables, text=True,
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
    kafka, http, page = (int(ports[name]) for name in ("KAFKA_PORT", "HTTP_PORT", "PAGE_PORT"))
    assert not [port for port in (kafka, http, http + 1, page) if port_in_use(port)]


def test_from_events_to_a_summary(directory: Path, demo_variables: dict[str, str]) -> None:
    ports = free_ports()
    with start(demo_variables, DURATION="3", **ports) as process:
        output, _ = process.communicate(timeout=150)
    assert process.returncode == 0, output
    assert len(LINE.findall(output)) >= 2, output
    for part in (
        "the first 4,000 train", "the last 1,000", "training rules", "checks passed", "worker 2",
        "HR@10", "NDCG@10", "kcat -b", "own lists (", "lists for", "logs ", "make demo RATE=",
        f"The live page: http://localhost:{ports['PAGE_PORT']}/",
    ):  # fmt: skip
        assert part in output
    (sent,) = re.findall(r"streamed +([\d,]+) events in", output)
    assert 500 <= int(sent.replace(",", "")) <= 601, "3 s at 200 events/s"
    check_all_is_gone(directory, ports)


def test_ctrl_c_ends_it_in_order_on_a_broker_that_stays_as_it_was(
    directory: Path, demo_variables: dict[str, str], broker: Broker
) -> None:
    """By now the bundle is there (or is made again, where this test runs alone). The page keeps the demo going."""
    ports = free_ports()
    before = topics(broker)
    page = f"localhost:{ports['PAGE_PORT']}"
    with start(demo_variables, BOOTSTRAP=broker.bootstrap, RATE="50", DURATION="4", **ports) as process:
        assert process.stdout
        for line in process.stdout:
            if "  0:01" in line:
                keep = urllib.request.Request(
                    f"http://{page}/keep", method="POST", headers={"Origin": f"http://{page}"}
                )
                urllib.request.urlopen(keep, timeout=10).close()
            if "  0:06" in line:
                break
        else:
            pytest.fail("it ended by itself")
        process.send_signal(signal.SIGINT)
        output = process.stdout.read()
        assert process.wait(30) == 0, output
    assert "stopping the workers" in output
    assert "streamed" in output
    assert topics(broker) == before
    check_all_is_gone(directory, ports)


def test_a_worker_that_cannot_start_is_heard_and_nothing_stays(
    directory: Path, demo_variables: dict[str, str], broker: Broker
) -> None:
    ports = free_ports()
    variables = {"BOOTSTRAP": broker.bootstrap, "STREAM_WORKER_POLL_TIMEOUT_S": "50"} | ports
    with start(demo_variables, **variables) as process:
        output, _ = process.communicate(timeout=150)
    assert process.returncode == 1, output
    assert re.search(r"^demo: worker \d ended \(exit code \d\): .*POLL_TIMEOUT_S", output, re.MULTILINE), output
    assert "Traceback" not in output
    check_all_is_gone(directory, ports)


def topics(broker: Broker) -> set[str]:
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    try:
        return {name for name in admin.list_topics() if name.startswith("demo-")}
    finally:
        admin.close()
