"""The topics of a deployment on a real Kafka: made, checked, and refused where states would be wrong later."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kafka import KafkaAdminClient
from structlog.testing import capture_logs

from demo.broker import Broker
from stream_worker import topics
from stream_worker.errors import DataError, SettingsError, TransportError
from stream_worker.settings import TopicsSettings
from stream_worker.topics import check_topics, inspect, meets, required_configs, specifications


@pytest.fixture
def names(broker: Broker, unique: Callable[[str], str]) -> dict[str, Any]:
    """Where, and topics of one's own."""
    kinds = ("events", "recommendations", "rejected", "state")
    return {"bootstrap": broker.bootstrap, **{f"{kind}_topic": unique(kind) for kind in kinds}}


@pytest.fixture
def admin(broker: Broker) -> Iterator[KafkaAdminClient]:
    """To make topics as nobody should."""
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    yield admin
    admin.close()


def make(admin: KafkaAdminClient, name: str, partitions: int, **configs: str) -> None:
    """A topic; `cleanup_policy` is cleanup.policy."""
    options = {
        "num_partitions": partitions,
        "replication_factor": 1,
        "configs": {key.replace("_", "."): value for key, value in configs.items()},
    }
    admin.create_topics({name: options}, wait_for_metadata=True)


def test_topics_are_made_as_they_must_be_and_found_so(names: dict[str, Any]) -> None:
    missing = check_topics(TopicsSettings(**names))
    assert [report.problem.split(":")[0] for report in missing] == ["missing"] * 4
    made = check_topics(TopicsSettings(**names, create=True, partitions=3))
    assert all(report.created and not report.problem and report.partitions == 3 for report in made)
    again = check_topics(TopicsSettings(**names, create=True, partitions=5))
    assert not any(report.created or report.problem for report in again)
    with capture_logs() as logs:
        found = inspect(TopicsSettings(**names))
    assert (found.partitions, len(found.topic_id), logs) == (3, 36, [])


def test_a_state_topic_is_made_with_the_partitions_of_the_events(
    names: dict[str, Any], admin: KafkaAdminClient
) -> None:
    make(admin, names["events_topic"], 7, message_timestamp_type="LogAppendTime")
    check_topics(TopicsSettings(**names, create=True, partitions=2))
    assert inspect(TopicsSettings(**names)).partitions == 7


def test_what_would_lose_states_is_refused(names: dict[str, Any], admin: KafkaAdminClient) -> None:
    with pytest.raises(DataError, match=rf"{names['state_topic']}: missing: run `stream-worker topics --create`"):
        inspect(TopicsSettings(**names))
    make(admin, names["state_topic"], 2)
    check_topics(TopicsSettings(**names, create=True, partitions=3))
    with pytest.raises(DataError, match=r"cleanup.policy is delete, not compact"):
        inspect(TopicsSettings(**names))
    other = {**names, "state_topic": names["state_topic"] + "-2"}
    make(admin, other["state_topic"], 2, cleanup_policy="compact")
    with pytest.raises(DataError, match=r"has 2 partitions, but .* has 3: .* --state-topic"):
        inspect(TopicsSettings(**other))


def test_what_is_merely_unwise_is_a_warning(names: dict[str, Any], admin: KafkaAdminClient) -> None:
    make(admin, names["events_topic"], 1)
    make(admin, names["recommendations_topic"], 1, cleanup_policy="compact")
    check_topics(TopicsSettings(**names, create=True))
    with capture_logs() as logs:
        inspect(TopicsSettings(**names))
    warnings = {entry["topic"]: entry["problem"] for entry in logs if entry["log_level"] == "warning"}
    assert warnings.keys() == {names["events_topic"], names["recommendations_topic"]}
    assert "message.timestamp.type is CreateTime, not LogAppendTime" in warnings[names["events_topic"]]
    assert "message.timestamp.before.max.ms" in warnings[names["recommendations_topic"]]


@pytest.mark.parametrize("replicas", [1, 2, 3, 5])
def test_what_is_acknowledged_lies_on_two_brokers_where_there_are_three(replicas: int) -> None:
    for spec in specifications(TopicsSettings()):
        required = required_configs(spec, replicas)
        assert required.items() >= spec.configs.items()
        assert ("min.insync.replicas" in required) == (replicas >= 3)
    assert meets({"min.insync.replicas": "2"}, "min.insync.replicas", "2")
    assert meets({"min.insync.replicas": "3"}, "min.insync.replicas", "2")
    assert not meets({"min.insync.replicas": "1"}, "min.insync.replicas", "2")


def test_a_client_that_loses_track_of_records_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kafka.__version__", "3.0.11")
    with pytest.raises(SettingsError, match=r"kafka-python 3\.0\.11: .* Install kafka-python 3\.0\.12"):
        inspect(TopicsSettings())


KNOCKING = """
import contextlib, gc, os, threading
from stream_worker import logs, topics
from stream_worker.errors import TransportError
from stream_worker.settings import TopicsSettings

topics.TIMEOUT_MS = 100
logs.silence()
for _ in range(4):
    gc.collect()  # as the next attempt does: the last error still holds what it came from
    print(threading.active_count(), len(os.listdir("/proc/self/fd")))
    with contextlib.suppress(TransportError):
        topics.inspect(TopicsSettings(bootstrap="127.0.0.1:9"))
"""


def test_what_could_not_connect_leaves_nothing_behind() -> None:
    """A worker tries once a second for as long as Kafka is away. In its own process: pytest keeps what is logged."""
    done = subprocess.run([sys.executable, "-c", KNOCKING], capture_output=True, text=True, check=True)
    held = done.stdout.splitlines()
    assert len(held) == 4
    assert len(set(held)) == 1, held


def test_a_broker_that_is_not_there_is_retriable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics, "TIMEOUT_MS", 200)
    with pytest.raises(TransportError, match="Is it running"):
        inspect(TopicsSettings(bootstrap="127.0.0.1:9"))
