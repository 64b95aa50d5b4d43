"""The topics that a deployment needs: check them, create those that are missing."""

from dataclasses import dataclass, field

import kafka.errors
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from stream_worker.errors import DataError, TransportError
from stream_worker.settings import TopicsSettings

TIMEOUT_MS = 10_000


@dataclass(frozen=True)
class TopicSpec:
    """What a topic must look like; `configs` are checked, and set at creation."""

    name: str
    configs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TopicReport:
    """What was found: `problem` and `mend` are empty if all is well."""

    name: str
    partitions: int
    created: bool = False
    problem: str = ""


def specifications(settings: TopicsSettings) -> list[TopicSpec]:
    """The topics and their settings (docs/formats.md)."""
    return [
        TopicSpec(settings.events_topic, {"cleanup.policy": "delete", "message.timestamp.type": "LogAppendTime"}),
        TopicSpec(settings.recommendations_topic, {"cleanup.policy": "compact"}),
        TopicSpec(settings.rejected_topic, {"cleanup.policy": "delete"}),
    ]


def check_topics(settings: TopicsSettings) -> list[TopicReport]:
    """Compare the topics with what is required; with `settings.create`, make those that are missing.

    Raises:
        TransportError: the broker does not answer.
        DataError: it refuses to create a topic.
    """
    try:
        admin = KafkaAdminClient(bootstrap_servers=settings.bootstrap.split(","), bootstrap_timeout_ms=TIMEOUT_MS)
    except kafka.errors.KafkaError as error:
        raise TransportError(f"broker {settings.bootstrap}: {error}. Is it running, and the address right?") from error
    try:
        return [_check(admin, spec, settings) for spec in specifications(settings)]
    except kafka.errors.KafkaError as error:
        raise DataError(f"topics on {settings.bootstrap}: {type(error).__name__}: {error}") from error
    finally:
        admin.close()


def _check(admin: KafkaAdminClient, spec: TopicSpec, settings: TopicsSettings) -> TopicReport:
    partitions = _partitions(admin, spec.name)
    if not partitions and not settings.create:
        return TopicReport(spec.name, 0, problem="missing: run `stream-worker topics --create`")
    if not partitions:
        options = {
            "num_partitions": settings.partitions,
            "replication_factor": settings.replication_factor,
            "configs": spec.configs,
        }
        admin.create_topics({spec.name: options}, timeout_ms=TIMEOUT_MS, wait_for_metadata=True)
        return TopicReport(spec.name, settings.partitions, created=True)
    found = _configs(admin, spec)
    wrong = [
        f"{name} is {found.get(name)}, not {value}" for name, value in spec.configs.items() if found.get(name) != value
    ]
    return TopicReport(spec.name, partitions, problem="; ".join(wrong))


def _partitions(admin: KafkaAdminClient, name: str) -> int:
    if name not in admin.list_topics():
        return 0
    return len(admin.describe_topics([name])[0]["partitions"])


def _configs(admin: KafkaAdminClient, spec: TopicSpec) -> dict[str, str]:
    resource = ConfigResource(ConfigResourceType.TOPIC, spec.name)
    found = admin.describe_configs([resource], config_filter="all")
    configs: dict[str, dict[str, str]] = next(iter(found.values()))[spec.name]
    return {name: configs[name]["value"] for name in spec.configs if name in configs}
