"""What the demo starts: a broker (unless one is named), the topics and two workers; and their end, in order."""

import fcntl
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from demo.broker import Broker
from demo.children import CHECK_S, Stop, run_to_end
from demo.scrape import not_ready
from demo.settings import DemoSettings
from demo.team import Team
from stream_worker.errors import SettingsError, StreamWorkerError

READY_WITHIN_S = 60
ASK_BROKER_MS = 5000
PARTITIONS = 4
# How soon others take over from a killed worker: as soon as our own broker lets them, or any broker does by default.
SESSION_S, SESSION_ELSEWHERE_S = 4, 6


@dataclass(frozen=True)
class Names:
    """Topics and the consumer group."""

    events: str = "events"
    recommendations: str = "recommendations"
    rejected: str = "events.rejected"
    state: str = "stream-worker-state"
    group: str = "stream-worker"

    @classmethod
    def of_run(cls, moment: float) -> "Names":
        """Names that nobody else has, for a broker that is not ours."""
        stem = f"demo-{int(moment)}"
        return cls(f"{stem}-events", f"{stem}-recommendations", f"{stem}-events.rejected", f"{stem}-state", stem)

    @property
    def topics(self) -> list[str]:
        """All topics."""
        return [self.events, self.recommendations, self.rejected, self.state]

    @property
    def flags(self) -> list[str]:
        """For `stream-worker`'s commands."""
        return [
            "--events-topic", self.events, "--recommendations-topic", self.recommendations,
            "--rejected-topic", self.rejected, "--state-topic", self.state,
        ]  # fmt: skip


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Hold the demo's directory: a second demo on it would pull Kafka's data from under the first.

    Raises:
        SettingsError: another demo holds it, or it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "lock").open("w")
    except OSError as error:
        raise SettingsError(f"{directory}: {error.strerror}; choose another place with DEMO_DIR") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SettingsError(
                f"another demo runs in {directory}: stop it first, or choose another place with DEMO_DIR"
            ) from None
        yield


@contextmanager
def own_broker(directory: Path, port: int) -> Iterator[Broker]:
    """A broker without any memory of earlier runs; its data and log stay after its end, until the next run."""
    data = directory / "kafka"
    shutil.rmtree(data, ignore_errors=True)
    with Broker(data, port) as broker:
        yield broker


def require_broker(bootstrap: str) -> None:
    """Make sure that what listens there is Kafka.

    Raises:
        SettingsError: it is not, or does not answer.
    """
    try:
        KafkaAdminClient(bootstrap_servers=bootstrap.split(","), bootstrap_timeout_ms=ASK_BROKER_MS).close()
    except KafkaError as error:
        raise SettingsError(
            f"no Kafka broker answers at {bootstrap} ({type(error).__name__}): correct BOOTSTRAP"
        ) from error


def create_topics(bootstrap: str, names: Names, log: Path, stop: Stop) -> None:
    """Run `stream-worker topics --create`.

    Raises:
        StreamWorkerError: it failed; the message is its own.
    """
    command = ["-m", "stream_worker", "topics", "--create", "--bootstrap", bootstrap, *names.flags]
    child = run_to_end("topics", [*command, "--partitions", str(PARTITIONS)], stop, log)
    if child.returncode:
        raise StreamWorkerError(child.last_words())


def remove_topics(bootstrap: str, names: Names) -> bool:
    """Delete the topics and the group of this run from a broker that is not ours. Returns whether that worked."""
    try:
        admin = KafkaAdminClient(bootstrap_servers=bootstrap.split(","), bootstrap_timeout_ms=ASK_BROKER_MS)
    except KafkaError:
        return False
    try:
        admin.delete_topics(names.topics, timeout_ms=ASK_BROKER_MS)
        with suppress(KafkaError):  # a group that never committed is no group
            admin.delete_groups([names.group])
    except KafkaError:
        return False
    finally:
        admin.close()
    return True


@contextmanager
def workers(settings: DemoSettings, bootstrap: str, bundle: Path, names: Names) -> Iterator[Team]:
    """Two workers, as a user starts them; stopped by SIGTERM, at the latest when the `with` ends."""
    session_s = session(settings)
    common = ["-m", "stream_worker", "run", "--bundle", str(bundle), "--bootstrap", bootstrap, *names.flags]
    common += ["--group", names.group, "--log-format", "pretty", "--http-host", "127.0.0.1"]
    common += ["--session-timeout-s", str(session_s), "--delivery-timeout-s", str(session_s - 1)]
    team = Team(
        [
            (port, settings.directory / f"worker-{number}.log", [*common, "--http-port", str(port)])
            for number, port in enumerate(settings.http_ports, start=1)
        ]
    )
    try:
        yield team
    finally:
        team.stop()


def session(settings: DemoSettings) -> int:
    """Seconds after which others take over from a worker that was killed."""
    return SESSION_ELSEWHERE_S if settings.bootstrap else SESSION_S


def await_ready(team: Team, stop: Stop) -> None:
    """Return once every worker's /readyz says yes.

    Raises:
        StreamWorkerError: one has ended, or is not ready in time; the message says what it said last.
        Stopped: the user asked for the end.
    """
    deadline = time.monotonic() + READY_WITHIN_S
    waiting = list(team.workers)
    while waiting:
        for worker in list(waiting):
            child = worker.child
            if not worker.runs:
                raise StreamWorkerError(f"{child.name} ended ({child.how_it_ended()}): {child.last_words()}")
            problem = not_ready(worker.port)
            if problem is None:
                waiting.remove(worker)
            elif time.monotonic() > deadline:
                raise StreamWorkerError(
                    f"{child.name} is not ready after {READY_WITHIN_S} s ({problem}); its log: {child.log}"
                )
        stop.wait(CHECK_S)
