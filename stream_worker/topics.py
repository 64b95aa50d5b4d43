"""The topics that a deployment needs: check them, create those that are missing."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import kafka
import kafka.errors
import structlog
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.partitioner.default import murmur2

from stream_worker.connection import for_kafka_python
from stream_worker.entrance import away, knock, lacks, made
from stream_worker.errors import DataError, SettingsError
from stream_worker.settings import KafkaSettings, TopicsSettings

log = structlog.get_logger(__name__)

TIMEOUT_MS = 10_000
OLDEST_CLIENT = (3, 0, 12)
# Below three quarters of the least session timeout that a broker allows (6 s by default): a worker that is stopped just
# before a heartbeat is thrown out so soon, and nothing that it had handed over may come after that.
MAX_LIST_AGE_MS = 4000
# With this many replicas a record that was acknowledged must lie on two of them: else the broker that has the only copy
# may take a checkpoint with it.
REPLICATED, MIN_IN_SYNC = 3, 2


@dataclass(frozen=True)
class TopicSpec:
    """What a topic must look like; `configs` are checked, and set at creation.

    compacted: whether a worker refuses the topic if it is not.
    operations: what a worker does with it, in the words of Kafka's authorizer.
    """

    name: str
    configs: dict[str, str] = field(default_factory=dict)
    compacted: bool = False
    operations: tuple[str, ...] = ("WRITE",)


@dataclass(frozen=True)
class TopicReport:
    """What was found: `problem` is empty if all is well."""

    name: str
    partitions: int
    topic_id: str = ""
    created: bool = False
    problem: str = ""
    fatal: bool = False  # whether a worker refuses it
    lacking: tuple[str, ...] = ()  # permissions that a worker needs, and we have not


def specifications(settings: KafkaSettings) -> list[TopicSpec]:
    """The topics and their settings (docs/formats.md), the events first."""
    return [
        TopicSpec(
            settings.events_topic,
            {"cleanup.policy": "delete", "message.timestamp.type": "LogAppendTime"},
            operations=("READ",),
        ),
        TopicSpec(
            settings.recommendations_topic,
            # The broker refuses a list that a stalled worker handed over before it stalled (docs/guarantees.md, 8).
            {
                "cleanup.policy": "compact",
                "message.timestamp.type": "CreateTime",
                "message.timestamp.before.max.ms": str(MAX_LIST_AGE_MS),
            },
        ),
        TopicSpec(settings.state_topic, {"cleanup.policy": "compact"}, compacted=True, operations=("READ", "WRITE")),
        TopicSpec(settings.rejected_topic, {"cleanup.policy": "delete"}),
    ]


def required_configs(spec: TopicSpec, replicas: int) -> dict[str, str]:
    """The settings of a topic that has so many replicas."""
    return spec.configs | ({"min.insync.replicas": str(MIN_IN_SYNC)} if replicas >= REPLICATED else {})


def partition_of(key: bytes, partitions: int) -> int:
    """Where Kafka's default partitioner puts a key: that of the client that our own producers use."""
    return int(murmur2(key) & 0x7FFFFFFF) % partitions


def inspect(settings: KafkaSettings, group: str | None = None) -> TopicReport:
    """Look at the topics before anything starts on them. Returns the events topic's report; warns of what is not fatal.

    Args:
        settings: where.
        group: a worker's; with it, the permissions that a worker needs are looked at, too.

    Raises:
        SettingsError: the Kafka client is too old.
        TransportError: the broker does not answer.
        DataError: a topic is missing, or would make states wrong later; or a permission is missing.
    """
    refuse_old_client()
    with admin_client(settings) as admin:
        reports = report_all(admin, settings)
        lacking = [] if group is None else lacking_permissions(admin, group, reports)
    if lacking:
        raise lacks(settings, ", ".join(lacking))
    problems = [f"{report.name}: {report.problem}" for report in reports if report.fatal]
    if problems:
        raise DataError(f"broker {settings.bootstrap}: {'; '.join(problems)}. See docs/formats.md, Topics.")
    for report in reports:
        if report.problem:
            log.warning("a topic is not as it should be", topic=report.name, problem=report.problem)
    events, _, state, _ = reports
    if problem := partitions_problem(events, state):
        raise DataError(problem)
    return events


def lacking_permissions(admin: KafkaAdminClient, group: str, reports: list[TopicReport]) -> list[str]:
    """What a worker must be allowed to do, and we are not."""
    topics = [f"{name} on topic {report.name!r}" for report in reports for name in report.lacking]
    return _lacking_on_group(admin, group) + topics


def _lacking_on_group(admin: KafkaAdminClient, group: str) -> list[str]:
    """What we may not do with the group, and must."""
    try:
        found = admin.describe_groups([group], include_authorized_operations=True)[group]
    except kafka.errors.GroupAuthorizationFailedError:
        return [f"READ on group {group!r}"]
    except kafka.errors.KafkaError:
        return []  # a cluster that never had a group needs a moment for its first; it will be asked to join soon
    allowed = found.get("authorized_operations")
    return [f"READ on group {group!r}"] if allowed and "READ" not in allowed else []


def refuse_old_client() -> None:
    """Look at the version of kafka-python.

    Raises:
        SettingsError: it loses records.
    """
    if tuple(int(part) for part in kafka.__version__.split(".")[:3]) < OLDEST_CLIENT:
        oldest = ".".join(map(str, OLDEST_CLIENT))
        raise SettingsError(
            f"kafka-python {kafka.__version__}: before {oldest} it loses track of records it could not send. "
            f"Install kafka-python {oldest} or newer."
        )


def partitions_problem(events: TopicReport, state: TopicReport) -> str:
    """Why a state could not lie in the partition of its events; empty if it can."""
    if events.partitions == state.partitions:
        return ""
    return (
        f"topic {state.name!r} has {state.partitions} partitions, but {events.name!r} has {events.partitions}: a "
        "state lies in the partition of its events. Name a new --state-topic, and make it with `stream-worker "
        "topics --create`."
    )


def check_topics(settings: TopicsSettings) -> list[TopicReport]:
    """Compare the topics with what is required; with `settings.create`, make those that are missing.

    Raises:
        TransportError: the broker does not answer.
        DataError: it refuses to create a topic.
    """
    with admin_client(settings) as admin:
        created = _create(admin, settings) if settings.create else set()
        reports = report_all(admin, settings)
    return [replace(report, created=report.name in created) for report in reports]


def admin_options(settings: KafkaSettings) -> dict[str, Any]:
    """The admin client's settings."""
    return {
        **for_kafka_python(settings),
        "bootstrap_timeout_ms": TIMEOUT_MS,
        "reconnect_backoff_max_ms": 1000,
    }


def report_all(admin: KafkaAdminClient, settings: KafkaSettings) -> list[TopicReport]:
    """What is found of each topic, the events first."""
    return [_check(admin, spec) for spec in specifications(settings)]


@contextmanager
def admin_client(settings: KafkaSettings) -> Iterator[KafkaAdminClient]:
    """A client, whose exceptions are ours."""
    knock(settings)
    try:
        admin = made(KafkaAdminClient, admin_options(settings))
    except kafka.errors.KafkaError as error:
        raise away(settings, error) from error
    try:
        yield admin
    except kafka.errors.KafkaError as error:
        if error.retriable or isinstance(error, kafka.errors.AuthorizationError):
            raise away(settings, error) from error
        raise DataError(f"topics on {settings.bootstrap}: {type(error).__name__}: {error}") from error
    finally:
        admin.close()


def _create(admin: KafkaAdminClient, settings: TopicsSettings) -> set[str]:
    """Make what is missing; returns the names. The state topic gets as many partitions as the events have."""
    created = set()
    partitions = _describe(admin, settings.events_topic).partitions or settings.partitions
    for spec in specifications(settings):
        if not _describe(admin, spec.name).partitions:
            options = {
                "num_partitions": partitions if spec.name == settings.state_topic else settings.partitions,
                "replication_factor": settings.replication_factor,
                "configs": required_configs(spec, settings.replication_factor),
            }
            admin.create_topics({spec.name: options}, timeout_ms=TIMEOUT_MS, wait_for_metadata=True)
            created.add(spec.name)
    return created


def _check(admin: KafkaAdminClient, spec: TopicSpec) -> TopicReport:
    partitions, topic_id, replicas, allowed = _describe(admin, spec.name)
    if "DESCRIBE" not in allowed:
        return TopicReport(
            spec.name, 0, problem="we lack the permission DESCRIBE on it", fatal=True, lacking=spec.operations
        )
    if not partitions:
        return TopicReport(spec.name, 0, problem="missing: run `stream-worker topics --create`", fatal=True)
    lacking = tuple(name for name in spec.operations if name not in allowed)
    required = required_configs(spec, replicas)
    found = _configs(admin, spec.name, required)
    if not found:
        problem = "its settings cannot be read: grant DESCRIBE_CONFIGS, or check them by hand"
        return TopicReport(spec.name, partitions, topic_id, problem=problem, lacking=lacking)
    wrong = [
        f"{name} is {found.get(name)}, not {value}" for name, value in required.items() if not meets(found, name, value)
    ]
    fatal = spec.compacted and "compact" not in found.get("cleanup.policy", "")
    return TopicReport(spec.name, partitions, topic_id, problem="; ".join(wrong), fatal=fatal, lacking=lacking)


def meets(found: Mapping[str, str], name: str, wanted: str) -> bool:
    """Whether the settings of a topic hold one that is as wanted, or stricter."""
    if name == "message.timestamp.before.max.ms":
        return int(found.get(name, 2**63)) <= int(wanted)
    if name == "min.insync.replicas":
        return int(found.get(name, 1)) >= int(wanted)
    return found.get(name) == wanted


class _Described(NamedTuple):
    """A topic: 0 partitions if there is none; `allowed` names what we may do with it."""

    partitions: int
    topic_id: str
    replicas: int
    allowed: Collection[str]


def _describe(admin: KafkaAdminClient, name: str) -> _Described:
    (topic,) = admin.describe_topics([name])
    error = kafka.errors.for_code(topic["error_code"])
    if error is kafka.errors.TopicAuthorizationFailedError:
        return _Described(0, "", 0, ())
    if error is kafka.errors.UnknownTopicOrPartitionError:
        return _Described(0, "", 0, ("DESCRIBE",))
    if error is not kafka.errors.NoError:
        raise error(name)
    replicas = min(len(partition["replica_nodes"]) for partition in topic["partitions"])
    return _Described(len(topic["partitions"]), str(topic["topic_id"]), replicas, topic["authorized_operations"])


def _configs(admin: KafkaAdminClient, topic: str, names: Collection[str]) -> dict[str, str]:
    """Those of these names; none if we may not read them."""
    resource = ConfigResource(ConfigResourceType.TOPIC, topic)
    try:
        found = admin.describe_configs([resource], config_filter="all")
    except kafka.errors.AuthorizationError:
        return {}
    configs: dict[str, dict[str, str]] = next(iter(found.values()))[topic]
    return {name: configs[name]["value"] for name in names if name in configs}
