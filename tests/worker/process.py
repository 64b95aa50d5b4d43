"""Real `stream-worker run` processes on a real Kafka, and what the topics say about them."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from demo.broker import Broker, free_port
from stream_worker.messages import TopK, decode_list
from stream_worker.settings import TopicsSettings
from stream_worker.topics import check_topics
from tests.worker.oracle import User, fold_log

DEADLINE_S = 60
CLIENTS = ("kafka-python", "librdkafka")
EXCLUDING = frozenset({"purchase", "dislike", "hide"})


def wait_for(what: str, done: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """The first truthy answer of `done`."""
    deadline = time.monotonic() + deadline_s
    pause = 0.02
    while not (answer := done()):
        assert time.monotonic() < deadline, f"{what}: not within {deadline_s:g} s"
        time.sleep(pause)
    return answer


class Stage:
    """Topics of one's own on a broker, a producer, and the workers started on them."""

    def __init__(
        self,
        broker: Broker,
        bundle: Path,
        logs: Path,
        unique: Callable[[str], str],
        client: str = CLIENTS[0],
        partitions: int = 4,
    ) -> None:
        self.broker = broker
        self.client = client  # of the workers; what looks at the topics is always kafka-python
        self.bootstrap = broker.bootstrap  # for the workers
        self.command = [sys.executable, "-m", "stream_worker"]  # how workers are started
        self.environment: dict[str, str] = {}  # further variables of theirs
        self.bundle = bundle
        self.logs = logs
        self.group = unique("group")
        self.partitions = partitions
        self.names = {
            "events_topic": unique("events"),
            "recommendations_topic": unique("recommendations"),
            "rejected_topic": unique("rejected"),
            "state_topic": unique("state"),
        }
        topics: dict[str, Any] = {"bootstrap": broker.bootstrap, **self.names}
        check_topics(TopicsSettings(create=True, partitions=partitions, **topics))
        self.flags = [text for name, topic in self.names.items() for text in (f"--{name.replace('_', '-')}", topic)]
        self.producer: KafkaProducer | None = None
        self.second = int(time.time()) - 1_000_000
        self.workers: list[WorkerProcess] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            worker.kill()
            if kind is not None:
                sys.stderr.write(f"-- {worker.log.name}\n{worker.log.read_text()}\n")
        self.close_producer()

    def close_producer(self) -> None:
        """Before the broker goes away: the client leaves the sockets of failed connects to the garbage collector."""
        if self.producer is not None:
            self.producer.close(timeout=5)
        self.producer = None

    def worker(self, *flags: str, ready: bool = True) -> "WorkerProcess":
        """One more worker, ready unless told otherwise."""
        worker = WorkerProcess(self, len(self.workers), flags)
        self.workers.append(worker)
        if ready:
            worker.wait_ready()
        return worker

    def send(self, events: Iterable[tuple[str, str]]) -> None:
        """Produce (user, item) events and wait; each has a second of its own, so that none is a duplicate."""
        for user, item in events:
            self.second += 1
            self.send_raw(msgspec.json.encode({"user": user, "item": item, "time": self.second * 1000}), user.encode())
        assert self.producer is not None
        self.producer.flush(DEADLINE_S)

    def send_raw(self, value: bytes, key: bytes) -> None:
        """Produce any bytes."""
        if self.producer is None:
            self.producer = KafkaProducer(bootstrap_servers=self.broker.bootstrap, acks="all", linger_ms=2)
        self.producer.send(self.names["events_topic"], value, key)

    def records(self, topic: str) -> list[Any]:
        """Every record of a topic."""
        consumer = KafkaConsumer(bootstrap_servers=self.broker.bootstrap)
        name = self.names[topic]
        partitions = [TopicPartition(name, number) for number in consumer.partitions_for_topic(name)]
        consumer.assign(partitions)
        for partition in partitions:
            consumer.seek(partition, 0)
        missing = sum(consumer.end_offsets(partitions).values())
        found: list[Any] = []
        while len(found) < missing:
            found += [record for batch in consumer.poll(timeout_ms=100).values() for record in batch]
        consumer.close()
        return found

    def lists(self) -> dict[str, TopK]:
        """The newest list of each user, by epoch and offset."""
        newest: dict[str, TopK] = {}
        for record in self.records("recommendations_topic"):
            top = decode_list(record.value)
            before = newest.get(top.user)
            if before is None or (top.epoch, top.offset) >= (before.epoch, before.offset):
                newest[top.user] = top
        return newest

    def expected(self) -> dict[str, User]:
        """Every user as a plain fold of the events topic says."""
        logs: dict[int, list[tuple[int, dict[str, Any]]]] = {}
        for record in self.records("events_topic"):
            event = {"action": "view", **json.loads(record.value), "received": record.timestamp}
            logs.setdefault(record.partition, []).append((record.offset, event))
        users: dict[str, User] = {}
        for log in logs.values():
            users |= fold_log([event for _, event in sorted(log, key=lambda pair: pair[0])], 64, 32, EXCLUDING)
        return users

    def covered(self) -> bool:
        """Whether every user's newest list covers the user's last event and counts all of them."""
        newest = {user: (top.offset, top.events) for user, top in self.lists().items()}
        return newest == {user: (one.applied, one.events) for user, one in self.expected().items()}


class WorkerProcess:
    """A worker process; its log is its stderr."""

    def __init__(self, stage: Stage, number: int, flags: Sequence[str]) -> None:
        self.port = free_port()
        self.log = stage.logs / f"worker-{number}.log"
        arguments = ["--bundle", str(stage.bundle), "--bootstrap", stage.bootstrap, "--group", stage.group]
        arguments += ["--client", stage.client]
        arguments += ["--http-port", str(self.port), "--http-host", "127.0.0.1"]
        arguments += stage.flags
        arguments += ["--session-timeout-s", "6", "--delivery-timeout-s", "3", *flags]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*stage.command, "run", *arguments], stderr=log, env=os.environ | stage.environment
            )

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of an endpoint; 0 while nobody listens."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def ready(self) -> bool:
        """Whether /readyz says so; a worker that has ended is a failure."""
        assert self.process.poll() is None, f"the worker ended: {self.log.read_text()}"
        return self.get("/readyz")[0] == 200

    def wait_ready(self) -> None:
        """Until /readyz answers 200."""
        wait_for("ready", self.ready)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = [line for line in self.get("/metrics")[1].splitlines() if line.startswith(f"stream_worker_{name}")]
        return sum(float(line.rpartition(" ")[2]) for line in lines if line[len("stream_worker_" + name)] in " {")

    def partitions(self) -> int:
        """How many partitions it serves."""
        return self.get("/metrics")[1].count("\nstream_worker_restoring{")

    def terminate(self) -> tuple[int, float]:
        """SIGTERM; exit code and seconds."""
        start = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S), time.monotonic() - start

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(DEADLINE_S)
