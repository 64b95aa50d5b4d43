"""What reading costs with the client as it comes: a partition to its end, with the worker's client settings, no more.

`python -m benchmarks.reader` is started by the benchmarks; it prints how many records in which time, as JSON.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from stream_worker.settings import Settings
from stream_worker.transports.group import RESTORE_RECORDS
from stream_worker.transports.kafka import consumer_options
from stream_worker.transports.kafka_changelog import changelog_consumer_options

NO_GROUP = {"group_id": None, "group_instance_id": None, "auto_offset_reset": "earliest"}


def read(options: dict[str, Any], topic: str, max_records: int, timeout_s: float) -> dict[str, float]:
    """Partition 0, to its high watermark; returns the number of records, and the time since the client was made."""
    start, cpu_start = time.monotonic(), time.process_time()
    consumer = KafkaConsumer(**options)
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    count, end = 0, None
    while end is None or consumer.position(partition) < end:
        for records in consumer.poll(timeout_ms=int(timeout_s * 1000), max_records=max_records).values():
            count += len(records)
        end = consumer.highwater(partition)
    found = {"records": count, "seconds": time.monotonic() - start, "cpu_s": time.process_time() - cpu_start}
    consumer.close()
    return found


def main() -> None:
    """Read, and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reader", description=__doc__)
    parser.add_argument("--bootstrap", required=True)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--state-topic")
    which.add_argument("--events-topic")
    args = parser.parse_args()
    settings = Settings(bundle=Path(), bootstrap=args.bootstrap)
    if args.state_topic:
        options, topic, most = changelog_consumer_options(settings), args.state_topic, RESTORE_RECORDS
    else:
        options, topic, most = consumer_options(settings) | NO_GROUP, args.events_topic, settings.max_poll_records
    print(json.dumps(read(options, topic, most, settings.poll_timeout_s)))


if __name__ == "__main__":
    main()
