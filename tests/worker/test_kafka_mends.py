"""What a client gets wrong does not reach us."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

from demo.broker import Broker
from stream_worker.settings import Settings, TopicsSettings
from stream_worker.topics import check_topics
from stream_worker.transports.base import Transport
from stream_worker.transports.kafka import KafkaTransport
from stream_worker.transports.librdkafka import LibrdkafkaTransport
from tests.worker.process import wait_for


@pytest.mark.parametrize("client", [KafkaTransport, LibrdkafkaTransport])
def test_a_backlog_that_was_passed_over_for_fresh_events_is_delivered(
    broker: Broker, unique: Callable[[str], str], client: Callable[[Settings], Transport]
) -> None:
    """Some of its records are in the client when it is paused; then others come, and later none."""
    names: dict[str, Any] = {
        f"{name}_topic": unique(name) for name in ("events", "recommendations", "rejected", "state")
    }
    check_topics(TopicsSettings(bootstrap=broker.bootstrap, create=True, partitions=2, **names))
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap)
    for _ in range(500):
        producer.send(names["events_topic"], b"{}", b"u", partition=0)
    producer.flush()

    settings = Settings(bundle=Path(), bootstrap=broker.bootstrap, group=unique("group"), max_poll_records=10, **names)
    transport = client(settings)
    transport.open()
    delivered = {0: 0, 1: 0}

    def poll(late: list[int]) -> bool:
        polled = transport.poll(0.02, late)
        for number in polled.restored:
            transport.seek(number, 0)
        for number, records in polled.records.items():
            delivered[number] += len(records)
        return bool(polled.records)

    wait_for("some of the backlog", lambda: poll([]) and delivered[0])
    for _ in range(50):
        producer.send(names["events_topic"], b"{}", b"u", partition=1)
    producer.close()
    wait_for("the fresh events", lambda: poll([0]) and delivered[1] == 50)
    wait_for("the backlog", lambda: poll([0]) and delivered[0] == 500, 20)
    transport.close()
