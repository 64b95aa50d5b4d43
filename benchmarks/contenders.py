"""The processes that are measured: one worker or one echo each, started, stopped still, and asked what they used."""

import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.errors import BenchmarkError
from benchmarks.ready import READY
from demo.broker import Broker
from stream_worker.metrics import PREFIX
from stream_worker.settings import PREFIX as VARIABLES
from stream_worker.settings import Settings

START_TIMEOUT_S = 300  # restoring a million events takes its time
STOP_TIMEOUT_S = 20
BUSY_TIMEOUT_S = 300
SETTLE_S = 0.1  # between two looks at it
QUIET_S = 0.5  # a contender that writes nothing for so long, and for the interval of its checkpoints, is done
SESSION_TIMEOUT_S = 300  # the most that the worker allows: a contender is stopped still while others are measured
ROOT = Path(__file__).resolve().parents[1]
EVENTS, REJECTED = "events", "rejected"  # topics
CHECKPOINTS = ("checkpoint_seconds_count", "checkpoint_seconds_sum", "checkpoint_users_total")  # of its metrics
TOTALS = (
    *CHECKPOINTS,
    "events_total",
    "lists_total",
    "pending_users",
    "users",
    "evicted_total",
)  # all that are looked at
DEFAULT_INTERVAL_S: float = Settings.model_fields["checkpoint_interval_s"].default
CLIENTS = ("kafka-python", "librdkafka")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Contender:
    """One process between the events topic and a topic of its own.

    Args:
        name: in the tables.
        command: to start it.
        topic: where its lists go; its consumer group is called the same.
        folder: for its log.
        code: the directory to start it in, where `python -m` finds its code.
        state_topic: where its states go, if it keeps any.
        silent_s: how long it may write nothing although it is not done.
        own_topics: which it makes by itself.
    """

    def __init__(
        self, name: str, command: Sequence[str], topic: str, folder: Path, code: Path = ROOT,
        state_topic: str | None = None, silent_s: float = 0, own_topics: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.name = name
        self.topic = topic
        self.state_topic = state_topic
        self.own_topics = own_topics
        self.quiet_s = silent_s + QUIET_S
        self._command = command
        self._code = code
        self.log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and return once it is ready for events.

        Raises:
            BenchmarkError: it ended, or took too long; the message ends with its log's tail.
        """
        environment = {name: value for name, value in os.environ.items() if not name.startswith(VARIABLES)}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._code,
                env=environment | {"ORT_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.is_ready():
            if time.monotonic() > deadline:
                raise BenchmarkError(f"{self.name} was not ready after {START_TIMEOUT_S} s\n{self._tail()}")
            time.sleep(0.1)
            self.check()

    def is_ready(self) -> bool:
        """Whether it takes events."""
        return READY in self.log.read_text().split()

    def check(self) -> None:
        """Whether it still runs.

        Raises:
            BenchmarkError: it ended.
        """
        if self._running.poll() is not None:
            raise BenchmarkError(f"{self.name} ended with exit code {self._running.returncode}\n{self._tail()}")

    def stop(self) -> None:
        """Orderly.

        Raises:
            BenchmarkError: it did not end with exit code 0.
        """
        self.resume()
        self._running.terminate()
        try:
            code = self._running.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise BenchmarkError(f"{self.name} did not stop in {STOP_TIMEOUT_S} s\n{self._tail()}") from None
        if code:
            raise BenchmarkError(f"{self.name} stopped with exit code {code}\n{self._tail()}")

    def kill(self) -> None:
        """At once, whatever it does; nothing happens if it does not run."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def pause(self) -> None:
        """Stop it still, so that it uses nothing."""
        self._running.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._running.send_signal(signal.SIGCONT)

    def cpu_s(self) -> float:
        """CPU time so far, of all threads, user and system."""
        fields = self._proc("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S

    def rss_mib(self) -> float:
        """Resident memory, MiB."""
        return self._memory_mib("VmRSS")

    def peak_rss_mib(self) -> float:
        """The most it ever was, MiB."""
        return self._memory_mib("VmHWM")

    def totals(self) -> dict[str, float]:
        """What it has counted so far: seconds by stage, and CHECKPOINTS; empty for what counts nothing."""
        return {}

    @property
    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            raise BenchmarkError(f"{self.name} was not started")
        return self._process

    def _proc(self, name: str) -> str:
        self.check()
        return Path(f"/proc/{self._running.pid}/{name}").read_text()

    def _memory_mib(self, name: str) -> float:
        found = re.search(rf"{name}:\s+(\d+) kB", self._proc("status"))
        return int(found[1]) / 1024 if found else 0.0

    def _tail(self, lines: int = 15) -> str:
        return "\n".join(["the end of its log:", *self.log.read_text(errors="replace").splitlines()[-lines:]])


class WorkerContender(Contender):
    """`stream-worker run`, which says on /readyz when it is ready."""

    url = ""

    def is_ready(self) -> bool:
        """Whether it takes events: restored, warmed up, with its partition."""
        if not self.url:
            found = re.search(r'"?http_port"?\s*[:=]\s*"?(\d+)', self.log.read_text())
            if not found:
                return False
            self.url = f"http://127.0.0.1:{found[1]}"
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as answer:  # noqa: S310
                return bool(answer.status == 200)
        except OSError:  # also of a worker that has just ended: check() says why
            return False

    def totals(self) -> dict[str, float]:
        """From /metrics."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as answer:  # noqa: S310
            text = answer.read().decode()
        totals = dict.fromkeys(TOTALS, 0.0)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name = sample.name.removeprefix(f"{PREFIX}_")
                if name == "stage_seconds_sum":
                    totals[sample.labels["stage"]] = sample.value
                elif name in TOTALS:
                    totals[name] = totals.get(name, 0.0) + sample.value
        return totals


class Place(NamedTuple):
    """Where contenders run: the broker, a prefix of all names there, and a folder for logs."""

    bootstrap: str
    prefix: str
    folder: Path

    def topic(self, name: str) -> str:
        """The topic that is called so here."""
        return f"{self.prefix}-{name}"


@contextmanager
def place(bootstrap: str | None) -> Iterator[Place]:
    """A new one on this broker, or on one of its own."""
    with tempfile.TemporaryDirectory(prefix="stream-worker-bench-") as folder:
        prefix = f"bench-{uuid.uuid4().hex[:8]}"
        if bootstrap is not None:
            yield Place(bootstrap, prefix, Path(folder))
        else:
            with Broker() as broker:
                yield Place(broker.bootstrap, prefix, Path(folder))


def worker(
    place: Place,
    bundle: Path,
    name: str = "worker",
    code: Path = ROOT,
    checkpoint_interval_s: float = DEFAULT_INTERVAL_S,
    state: str | None = None,
    flags: Sequence[str] = (),
) -> WorkerContender:
    """One worker with its default settings, which makes no lists for what is on the topic before it starts.

    Args:
        code: the checkout whose worker it is. One without a state topic folds all events anew when it starts.
        checkpoint_interval_s: infinite for none.
        state: its state topic is called so here, else after its name.
        flags: for the worker; they win over ours.
    """
    topic, state_topic = place.topic(name), place.topic(state or f"{name}-state")
    keeps_state = "state_topic:" in (code / "stream_worker" / "settings.py").read_text()
    command = [
        sys.executable, "-m", "stream_worker", "run", "--bundle", str(bundle.resolve()),
        "--bootstrap", place.bootstrap, "--events-topic", place.topic(EVENTS), "--recommendations-topic", topic,
        "--rejected-topic", place.topic(REJECTED), "--group", topic, "--first-start", "latest", "--device", "cpu",
        "--http-host", "127.0.0.1", "--http-port", "0", "--session-timeout-s", str(SESSION_TIMEOUT_S),
        "--log-format", "json", *flags,
    ]  # fmt: skip
    if not keeps_state:
        return WorkerContender(name, command, topic, place.folder, code)
    command += ["--state-topic", state_topic]
    if math.isinf(checkpoint_interval_s):
        command += ["--checkpoint-interval-s", "3600", "--max-dirty-users", str(10**9)]
        return WorkerContender(name, command, topic, place.folder, code, state_topic)
    command += ["--checkpoint-interval-s", str(checkpoint_interval_s)]
    return WorkerContender(name, command, topic, place.folder, code, state_topic, checkpoint_interval_s)


def echo(place: Place, size: int, name: str = "echo", client: str = CLIENTS[0]) -> Contender:
    """One echo, whose records have `size` bytes."""
    topic = place.topic(name)
    command = [
        sys.executable, "-m", "benchmarks.echo", "--bootstrap", place.bootstrap, "--events-topic", place.topic(EVENTS),
        "--out-topic", topic, "--group", topic, "--bytes", str(size), "--session-timeout-s", str(SESSION_TIMEOUT_S),
        "--client", client,
    ]  # fmt: skip
    return Contender(name, command, topic, place.folder)
