"""A cluster of two brokers, of which one goes: its partition waits for it, the other one's users are served."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from demo.broker import Broker
from stream_worker.errors import TransportError
from stream_worker.reader import Recommendations
from stream_worker.settings import KafkaSettings
from stream_worker.topics import partition_of, specifications
from tests.worker.process import CLIENTS, Stage, wait_for

HERE, THERE = 0, 1  # partitions: on the broker that stays, and on the one that goes
USERS = [f"u{number}" for number in range(20)]


@contextmanager
def second_broker(first: Broker) -> Iterator[Broker]:
    """One more, after Kafka's own topics are made on the first."""
    producer = KafkaProducer(bootstrap_servers=first.bootstrap, transactional_id="first")
    producer.init_transactions()
    producer.close(timeout=5)
    consumer = KafkaConsumer(bootstrap_servers=first.bootstrap, group_id="first")
    consumer.committed(TopicPartition("none", 0))
    consumer.close()
    with first.follower(2) as second:
        yield second


def make_topics(bootstrap: str) -> None:
    """Those that `Stage` will look for, with two partitions each."""
    settings = KafkaSettings(
        bootstrap=bootstrap, events_topic="events-x", recommendations_topic="recommendations-x",
        rejected_topic="rejected-x", state_topic="state-x",
    )  # fmt: skip
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    wait_for("both brokers", lambda: len(admin.describe_cluster()["brokers"]) == 2)
    for spec in specifications(settings):
        there = 2 if spec.name == "events-x" else 1
        options = {"assignments": {HERE: [1], THERE: [there]}, "configs": spec.configs}
        admin.create_topics({spec.name: options}, wait_for_metadata=True)
    admin.close()


def leader_of(bootstrap: str, topic: str, number: int) -> int | None:
    """Its broker, -1 if there is none; None if the one that was asked has gone."""
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        (found,) = admin.describe_topics([topic])
    except KafkaError:
        return None
    finally:
        admin.close()
    return next(int(one["leader_id"]) for one in found["partitions"] if one["partition_index"] == number)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_partition_without_a_leader_holds_up_no_other_one(
    own_broker: Broker, models: dict[str, Path], tmp_path: Path, client: str
) -> None:
    home = {user: partition_of(user.encode(), 2) for user in USERS}
    assert set(home.values()) == {HERE, THERE}
    with second_broker(own_broker) as second:
        make_topics(own_broker.bootstrap)
        with Stage(own_broker, models["sasrec"], tmp_path, lambda kind: f"{kind}-x", client, partitions=2) as stage:
            stage.send((user, "i1") for user in USERS)
            second.kill()
            wait_for("the controller to see it", lambda: leader_of(own_broker.bootstrap, "events-x", THERE) == -1)
            worker = stage.worker(ready=False)

            def listed() -> set[str]:
                return {record.key.decode() for record in stage.records("recommendations_topic")}

            here = {user for user in USERS if home[user] == HERE}
            wait_for("lists of those who can be served", lambda: listed() == here)
            stage.send((user, "i2") for user in sorted(here))
            served = len(here) * 2
            wait_for("their lists go on", lambda: worker.metric("lists_total") == served, 10)
            assert worker.get("/livez")[0] == 200
            second.start()
            wait_for("everybody's", lambda: listed() == set(USERS))
            assert worker.process.poll() is None, worker.log.read_text()


def test_a_reader_says_that_a_partition_has_no_leader(own_broker: Broker) -> None:
    with second_broker(own_broker) as second:
        admin = KafkaAdminClient(bootstrap_servers=own_broker.bootstrap)
        wait_for("both brokers", lambda: len(admin.describe_cluster()["brokers"]) == 2)
        admin.create_topics({"lists": {"assignments": {0: [1], 1: [2]}}}, wait_for_metadata=True)
        admin.close()
        with Recommendations(own_broker.bootstrap, "lists") as lists:
            lists.wait_caught_up(30)
            second.kill()
            wait_for("the controller to see it", lambda: leader_of(own_broker.bootstrap, "lists", 1) == -1)

            def refused() -> bool:
                try:
                    lists.wait_caught_up(2)
                except TransportError as error:
                    return "no leader" in str(error) or "not read to its end" in str(error)
                return False

            wait_for("the reader to see it", refused)
