"""The producer against a broker that stops answering."""

import time
from collections.abc import Callable
from pathlib import Path

from demo.broker import Broker
from stream_worker.settings import Settings, TopicsSettings
from stream_worker.topics import check_topics
from stream_worker.transports.kafka_producer import KafkaPythonProducer
from tests.worker.process import wait_for


def test_a_producer_that_failed_is_replaced_while_other_records_are_still_in_flight(
    own_broker: Broker, unique: Callable[[str], str]
) -> None:
    topic = unique("recommendations")
    check_topics(TopicsSettings(bootstrap=own_broker.bootstrap, create=True, partitions=1, recommendations_topic=topic))
    producer = KafkaPythonProducer(Settings(bundle=Path(), bootstrap=own_broker.bootstrap, delivery_timeout_s=1.5))
    fates: dict[str, bool] = {}

    def learnt(*tokens: str) -> bool:
        for token, failed, _ in producer.deliveries():
            assert token not in fates, "delivered back twice"
            fates[token] = failed
        return set(tokens) <= fates.keys()

    def send(token: str) -> None:
        producer.send(topic, b"u", b"{}", token, [])
        producer.push()

    send("before")
    wait_for("the first acknowledgement", lambda: learnt("before"))
    own_broker.pause()
    send("early")
    early = time.monotonic()
    wait_for("a second to pass", lambda: time.monotonic() - early > 1)
    send("late")  # half a second behind: in flight when the other one fails
    wait_for("the failure", lambda: learnt("early"))
    wait_for("an attempt to replace it", lambda: not producer.usable() and learnt("late"))
    own_broker.resume()
    wait_for("a new producer", producer.usable)
    send("after")
    wait_for("the last acknowledgement", lambda: learnt("after"))
    assert fates == {"before": False, "early": True, "late": True, "after": False}
    assert producer.in_flight == 0
    producer.close()
