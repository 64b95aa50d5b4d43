"""`python -m benchmarks.appending`: what a record costs kafka-python's `send`, and our `Appender`, in turns.

CPU of the process, the client's thread included, a record of 700 bytes; 5,000 at once, as a checkpoint writes them in a
transaction, and as a step publishes lists.
"""

import os
import statistics
import time
import uuid
from collections.abc import Callable, Iterator

from kafka import KafkaProducer

from benchmarks.contenders import ROOT
from benchmarks.topics import Admin
from demo.broker import Broker
from stream_worker.settings import Settings
from stream_worker.transports.base import Change
from stream_worker.transports.kafka_append import write
from stream_worker.transports.kafka_checkpoint import checkpoint_producer_options
from stream_worker.transports.kafka_producer import producer_options

RECORDS = 5000
REPEATS = 7
TIMEOUT_S = 30
VALUE = os.urandom(350) + bytes(350)  # half of it compresses
Write = Callable[[KafkaProducer, str], None]


def by_send(client: KafkaProducer, topic: str) -> None:
    """The client's own way."""
    for future in [client.send(topic, VALUE, key, partition=0) for key in keys()]:
        future.get(timeout=TIMEOUT_S)


def by_append(client: KafkaProducer, topic: str) -> None:
    """Ours."""
    write(client, topic, (Change(0, key, VALUE) for key in keys()), TIMEOUT_S)


def keys() -> Iterator[bytes]:
    """Of the records."""
    return (b"user%08d" % number for number in range(RECORDS))


def us_per_record(way: Write, client: KafkaProducer, topic: str, in_transaction: bool) -> float:
    """CPU microseconds, until all are acknowledged."""
    start = time.process_time()
    if in_transaction:
        client.begin_transaction()
    way(client, topic)
    if in_transaction:
        client.commit_transaction()
    return (time.process_time() - start) / RECORDS * 1e6


def main() -> None:
    """Measure, print."""
    with Broker() as broker:
        settings = Settings(bootstrap=broker.bootstrap, bundle=ROOT)
        admin = Admin(broker.bootstrap)
        topics = {True: "states", False: "lists"}
        admin.create(list(topics.values()))
        checkpoints = KafkaProducer(**checkpoint_producer_options(settings, uuid.uuid4().hex))
        checkpoints.init_transactions()
        clients = {True: checkpoints, False: KafkaProducer(**producer_options(settings))}
        for in_transaction, topic in topics.items():
            each: list[tuple[float, float]] = []
            for _ in range(REPEATS):
                a, b = (us_per_record(w, clients[in_transaction], topic, in_transaction) for w in (by_send, by_append))
                each.append((a, b))
            send, append = (statistics.median(one) for one in zip(*each, strict=True))
            ratio = statistics.median(b / a for a, b in each)
            print(f"{topic:8} send {send:6.1f} us a record, append {append:6.1f}, ratio {ratio:.2f}")
        for client in clients.values():
            client.close()
        admin.close()


if __name__ == "__main__":
    main()
