"""The commands; the only place that wires objects together.

Each imports what it needs once its settings are right: ONNX Runtime and the client take most of a second to load.
"""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import structlog

from stream_worker import __version__, logs
from stream_worker.connection import require_librdkafka
from stream_worker.errors import DataError, SettingsError, StreamWorkerError
from stream_worker.settings import (
    ForgetSettings,
    KafkaSettings,
    ReplaySettings,
    SeedSettings,
    Settings,
    TopicsSettings,
    parse_arguments,
    refuse_unknown_variables,
)

if TYPE_CHECKING:
    from stream_worker.bundle import Bundle
    from stream_worker.transports.base import Transport

PROG = "stream-worker"

T = TypeVar("T", bound=KafkaSettings)


def run(argv: Sequence[str]) -> None:
    """Consume events, publish fresh lists, until SIGTERM."""
    settings = _settings(Settings, argv, "run")
    from stream_worker.metrics import Metrics
    from stream_worker.worker import Worker

    transport = _transport(settings)
    Worker(settings, _bundle(settings), transport, Metrics()).run()


def replay(argv: Sequence[str]) -> None:
    """Run a file of events through the same pipeline, without Kafka."""
    settings = _settings(ReplaySettings, argv, "replay")
    from stream_worker.metrics import Metrics
    from stream_worker.pipeline import Pipeline
    from stream_worker.transports.files import FileTransport

    bundle = _bundle(settings)
    if settings.batch_users is not None:
        bundle.limit_batches(settings.batch_users)
    bundle.warm_up()
    metrics = Metrics()
    transport = FileTransport(settings.events, settings.out, settings.max_poll_records)
    transport.open()
    try:
        pipeline = Pipeline(settings, bundle, transport, metrics, clock=None)
        while not transport.exhausted or pipeline.marked:
            pipeline.step(0)
        drained = pipeline.drain(settings.drain_timeout_s)
        assert drained, "files acknowledge at once"
    finally:
        transport.close()
    counted = {name: metrics.total(name) for name in ("events", "lists", "rejected", "duplicates", "late", "unknown")}
    print(", ".join(f"{count} {name}" for name, count in counted.items()))


def topics(argv: Sequence[str]) -> None:
    """Check the topics; with --create, make those that are missing."""
    settings = _settings(TopicsSettings, argv, "topics")
    from stream_worker.topics import check_topics

    reports = check_topics(settings)
    for report in reports:
        state = "created" if report.created else report.problem or "ok"
        print(f"{report.name}: {report.partitions} partitions, {state}")
    if any(report.problem for report in reports):
        raise DataError("a topic is not as required; see above.")


def doctor(argv: Sequence[str]) -> int:
    """Look at all that `run` needs; print what is fine, and the mend of what is not. Writes to no topic."""
    settings = _settings(Settings, argv, "doctor")
    if settings.log_level != "debug":
        logs.silence()  # whatever is found is in the table
    from stream_worker.doctor import examine
    from stream_worker.findings import exit_code, table

    findings = examine(settings)
    print(table(findings, sys.stdout), end="")
    return exit_code(findings)


def forget(argv: Sequence[str]) -> None:
    """Erase a user and print the proof; with --verify, print the proof alone."""
    settings = _settings(ForgetSettings, argv, "forget")
    from stream_worker.forget import forget_user, verify
    from stream_worker.topics import inspect
    from stream_worker.transports.kafka_offline import KafkaOffline

    inspect(settings)
    with KafkaOffline(settings) as kafka:
        for line in (verify if settings.verify else forget_user)(settings, kafka):
            print(line, flush=True)


def seed(argv: Sequence[str]) -> None:
    """Fill a new state topic, from Parquet files or from another state topic."""
    settings = _settings(SeedSettings, argv, "seed")
    from stream_worker.seed import seed_events, seed_topic
    from stream_worker.transports.kafka_offline import KafkaOffline

    with KafkaOffline(settings) as kafka:
        for line in (seed_events if settings.events else seed_topic)(settings, kafka):
            print(line, flush=True)


COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "run": run,
    "replay": replay,
    "topics": topics,
    "doctor": doctor,
    "forget": forget,
    "seed": seed,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. A user's mistake is one line on stderr, never a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(_usage())
        return 0
    if name == "--version":
        print(__version__)
        return 0
    try:
        if name not in COMMANDS:
            raise SettingsError(f"no command {name!r}; there are {', '.join(COMMANDS)}.")
        return COMMANDS[name](arguments[1:]) or 0
    except StreamWorkerError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{PROG} {name}: interrupted", file=sys.stderr)
        return 130


def _settings(cls: type[T], argv: Sequence[str], command: str) -> T:
    refuse_unknown_variables([Settings, ReplaySettings, TopicsSettings, ForgetSettings, SeedSettings])
    settings = parse_arguments(cls, argv, f"{PROG} {command}")
    logs.configure(settings.log_level, settings.log_format)
    structlog.get_logger(__name__).debug("settings", **settings.model_dump(mode="json"))
    return settings


def _transport(settings: Settings) -> "Transport":
    """Kafka, through the client that is asked for."""
    if settings.client == "kafka-python":
        from stream_worker.transports.kafka import KafkaTransport

        return KafkaTransport(settings)
    require_librdkafka()
    from stream_worker.transports.librdkafka import LibrdkafkaTransport

    return LibrdkafkaTransport(settings)


def _bundle(settings: Settings) -> "Bundle":
    """Load the bundle, and hold the settings to it."""
    from stream_worker.bundle import Bundle

    bundle = Bundle(settings.bundle, settings.device, settings.threads, settings.cuda_graphs)
    bundle.require(settings.history_length, settings.list_length)
    return bundle


def _usage() -> str:
    lines = [f"usage: {PROG} COMMAND [--help]", ""]
    lines += [f"  {name:10}{(command.__doc__ or '').strip()}" for name, command in COMMANDS.items()]
    return "\n".join(
        [*lines, "", "Every flag is also an environment variable: --http-port is STREAM_WORKER_HTTP_PORT."]
    )
