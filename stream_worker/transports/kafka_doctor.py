"""What `stream-worker doctor` asks a cluster: nothing that writes to a topic."""

import time
from collections.abc import Callable, Iterator

from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import AuthorizationError, KafkaError

from stream_worker.entrance import lacks
from stream_worker.errors import DataError, StreamWorkerError
from stream_worker.findings import Finding
from stream_worker.settings import Settings
from stream_worker.topics import (
    MAX_LIST_AGE_MS,
    TopicReport,
    admin_client,
    lacking_permissions,
    partitions_problem,
    report_all,
)
from stream_worker.transports.kafka_checkpoint import checkpoint_producer_options

WAIT_S = 15.0  # for the coordinator of a cluster that never had a transaction
SMALL_SKEW_MS = 500
RECENT_MS = 10_000  # an event this young says how the clocks stand


def examine_kafka(settings: Settings) -> tuple[int, list[Finding]]:
    """Look at broker, topics, permissions and clock. Returns the events' partitions, 0 if not known, and findings."""
    findings: list[Finding] = []
    reports: list[TopicReport] = []
    try:
        with admin_client(settings) as admin:
            findings.append(_tried("broker", lambda: _broker(admin, settings)))
            reports += report_all(admin, settings)
            findings += _topics(reports)
            findings += [
                _tried("permissions", lambda: _permissions(admin, settings, reports)),
                _tried("transactions", lambda: _transactions(settings)),
                _tried("clock", lambda: _clock(admin, reports[0])),
            ]
    except StreamWorkerError as error:
        findings = [one for one in findings if one.what != "broker"]
        findings.insert(0, Finding.of("broker", error))
        looked_at = {one.what for one in findings}
        findings += [
            Finding(what, "not looked at: the broker comes first", "skipped")
            for what in ("topics", "permissions", "transactions", "clock")
            if what not in looked_at
        ]
    return (reports[0].partitions if reports else 0), findings


def _tried(what: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except KafkaError as error:
        return Finding(what, f"{type(error).__name__}: {error}", "wrong", DataError.exit_code)


def _broker(admin: KafkaAdminClient, settings: Settings) -> Finding:
    brokers = admin.describe_cluster()["brokers"]
    numbers = [broker["broker_id"] for broker in brokers]
    versions = sorted({".".join(map(str, admin.get_broker_version_data(one).broker_version)) for one in numbers})
    return Finding(
        "broker",
        f"{settings.bootstrap} answers: {len(brokers)} broker{'s' * (len(brokers) != 1)} of Kafka "
        f"{', '.join(versions)} or newer",
    )


def _topics(reports: list[TopicReport]) -> Iterator[Finding]:
    events, _, state, _ = reports
    for report in reports:
        what = f"topic {report.name}"
        if report.problem:
            yield Finding(
                what, f"{report.problem}. See docs/formats.md, Topics.", "wrong" if report.fatal else "unwise",
                DataError.exit_code if report.fatal else 0,
            )  # fmt: skip
        elif report is state and events.partitions and (problem := partitions_problem(events, state)):
            yield Finding(what, problem, "wrong", DataError.exit_code)
        else:
            yield Finding(what, f"{report.partitions} partition{'s' * (report.partitions != 1)}, set as required")


def _permissions(admin: KafkaAdminClient, settings: Settings, reports: list[TopicReport]) -> Finding:
    """As the broker says that they are: nothing is read or written."""
    if lacking := lacking_permissions(admin, settings.group, reports):
        return Finding.of("permissions", lacks(settings, ", ".join(lacking)))
    return Finding("permissions", f"topics and group {settings.group!r} may be used as a worker uses them")


def _transactions(settings: Settings) -> Finding:
    """Takes a transactional id of its own, beside the workers', whose owners this would end; begins no transaction."""
    name = f"{settings.group}-doctor"
    options = checkpoint_producer_options(settings, name) | {"max_block_ms": int(WAIT_S * 1000)}
    producer = KafkaProducer(**options)
    try:
        producer.init_transactions()
    except AuthorizationError as error:
        return Finding.of("transactions", lacks(settings, f"WRITE on transactional ids such as {name!r} ({error})"))
    finally:
        producer.close(timeout=1)
    return Finding("transactions", f"transactional ids that begin with {settings.group + '-'!r} may be used")


def _clock(admin: KafkaAdminClient, events: TopicReport) -> Finding:
    """The newest event's timestamp is the broker's; nothing else that a broker says tells its time."""
    unknown = Finding("clock", "not compared: no event yet that the broker has stamped", "skipped")
    if events.problem or events.lacking:
        return unknown
    numbers = range(events.partitions)
    found = admin.list_partition_offsets(
        {TopicPartition(events.name, one): OffsetSpec.MAX_TIMESTAMP for one in numbers}
    )
    now = time.time() * 1000
    newest = max((one.timestamp for one in found.values()), default=-1)
    return judge_clock(newest, now) if newest >= 0 else unknown


def judge_clock(newest_ms: float, now_ms: float) -> Finding:
    """What the timestamp of the newest event says of our clock: it cannot be of the future."""
    behind_ms = newest_ms - now_ms
    if behind_ms > SMALL_SKEW_MS:
        text = f"at least {behind_ms / 1000:.1f} s behind the broker's, which stamped an event so far in our future"
        if behind_ms >= MAX_LIST_AGE_MS:
            return Finding(
                "clock", f"{text}: it will refuse every list. Synchronise it (NTP).", "wrong", DataError.exit_code
            )
        return Finding("clock", f"{text}. Synchronise it (NTP).", "unwise")
    if behind_ms < -RECENT_MS:
        return Finding("clock", f"not behind the broker's; the newest event is {-behind_ms / 1000:,.0f} s old")
    return Finding(
        "clock",
        f"not behind the broker's; ahead by {max(0, -behind_ms) / 1000:.1f} s at most, the age of the newest event",
    )
