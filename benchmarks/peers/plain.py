"""The loop that people write first: kafka-python, ONNX Runtime, a dictionary; one event at a time.

As in kafka-python's documentation (KafkaConsumer and KafkaProducer, "Usage"): iterate over the consumer, commit
automatically, send. Its histories are lost when it ends, which costs nothing here.
"""

import signal
import sys

import orjson
from kafka import KafkaConsumer, KafkaProducer

from benchmarks.peers.recommender import Click, History, Recommender, arguments, is_import
from benchmarks.ready import READY


def main() -> None:
    """Run until SIGTERM."""
    args = arguments(__doc__)
    recommender = Recommender(args.bundle)
    histories: dict[str, History] = {}
    consumer = KafkaConsumer(
        args.events_topic,
        bootstrap_servers=args.bootstrap.split(","),
        group_id=args.group,
        auto_offset_reset="earliest",
        session_timeout_ms=args.session_timeout_s * 1000,
        max_poll_interval_ms=args.session_timeout_s * 2000,
    )
    producer = KafkaProducer(bootstrap_servers=args.bootstrap.split(","))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(READY, flush=True)
    try:
        for record in consumer:
            event = orjson.loads(record.value)
            user = event["user"]
            history = histories[user] = recommender.fold(histories.get(user), event)
            if not is_import(event):
                (found,) = recommender.lists([Click(user, history, record.partition, record.offset)])
                producer.send(args.out_topic, orjson.dumps(found), key=record.key)
    finally:
        producer.flush(10)
        producer.close(timeout=5)
        consumer.close()


if __name__ == "__main__":
    main()
