"""The dev broker: what the demo and every Kafka test stand on."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from kafka.errors import KafkaError

from demo.broker import ROOT, Broker, free_port, port_in_use
from stream_worker.errors import SettingsError, TransportError


def make_topic(broker: Broker, name: str) -> str:
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    try:
        admin.create_topics([NewTopic(name, num_partitions=1, replication_factor=1)])
    finally:
        admin.close()
    return name


def produce(broker: Broker, topic: str, values: list[bytes]) -> None:
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap, acks="all", reconnect_backoff_max_ms=500)
    try:
        for future in [producer.send(topic, value) for value in values]:
            future.get(timeout=20)
    finally:
        producer.close(timeout=5)


def consume(broker: Broker, topic: str, count: int) -> list[bytes]:
    consumer = KafkaConsumer(
        bootstrap_servers=broker.bootstrap,
        group_id=None,
        auto_offset_reset="earliest",
        reconnect_backoff_max_ms=500,
    )
    try:
        consumer.assign([TopicPartition(topic, 0)])
        values: list[bytes] = []
        deadline = time.monotonic() + 20
        while len(values) < count and time.monotonic() < deadline:
            for records in consumer.poll(timeout_ms=200).values():
                values += [record.value for record in records]
        return values
    finally:
        consumer.close()


def answers(broker: Broker) -> bool:
    try:
        admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap, bootstrap_timeout_ms=500, request_timeout_ms=500)
    except KafkaError:
        return False
    admin.close()
    return True


def test_what_is_produced_is_consumed(broker: Broker, unique: Callable[[str], str]) -> None:
    topic = make_topic(broker, unique("events"))
    produce(broker, topic, [b"one", b"two"])
    assert consume(broker, topic, 2) == [b"one", b"two"]


def test_a_topic_is_not_made_by_a_typing_mistake(broker: Broker, unique: Callable[[str], str]) -> None:
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap, max_block_ms=500)
    with pytest.raises(KafkaError):
        producer.send(unique("nosuch"), b"x").get(timeout=10)
    producer.close(timeout=5)


def test_a_killed_broker_comes_back_with_its_data(own_broker: Broker, unique: Callable[[str], str]) -> None:
    topic = make_topic(own_broker, unique("events"))
    produce(own_broker, topic, [b"before"])
    bootstrap = own_broker.bootstrap

    own_broker.kill()
    assert own_broker.pid is None
    assert not port_in_use(own_broker.port)

    own_broker.start()
    assert own_broker.bootstrap == bootstrap
    produce(own_broker, topic, [b"after"])
    assert consume(own_broker, topic, 2) == [b"before", b"after"]


def test_a_paused_broker_is_silent_until_it_resumes(own_broker: Broker) -> None:
    own_broker.pause()
    assert not answers(own_broker)
    own_broker.resume()
    deadline = time.monotonic() + 20
    while not answers(own_broker):
        assert time.monotonic() < deadline, "the broker did not come back from the pause"


def test_even_a_paused_broker_can_be_closed_and_leaves_nothing(own_broker: Broker) -> None:
    own_broker.pause()
    assert own_broker.log.exists()
    own_broker.close()
    assert own_broker.pid is None
    assert not own_broker.data.exists()


def test_a_port_in_use_is_said_in_one_line() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SettingsError) as raised:
            Broker(port=port).start()
    message = str(raised.value)
    assert f"port {port} is in use" in message
    assert "choose another port" in message
    assert "\n" not in message


def test_a_broker_that_does_not_start_says_why(own_broker: Broker) -> None:
    """Two brokers on one folder: the second one's message ends with its log's tail."""
    with pytest.raises(TransportError, match="Failed to acquire lock"):
        Broker(own_broker.data).start()
    assert own_broker.pid, "the first one is unharmed"


@pytest.mark.kafka
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_in_the_foreground_until_it_is_told_to_stop(tmp_path: Path, how: signal.Signals) -> None:
    port = free_port()
    command = [sys.executable, "-m", "demo.broker", "--port", str(port), "--data", str(tmp_path / "kafka")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert f"127.0.0.1:{port}" in process.stdout.readline()
        process.send_signal(how)
        assert process.wait(20) == 0
    assert not port_in_use(port)


@pytest.mark.kafka
def test_the_broker_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "demo.broker", "--port", str(port), "--data", str(tmp_path / "kafka")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + 20
    while port_in_use(port):
        assert time.monotonic() < deadline, "Kafka still holds its port"
