"""The floor of a restore: read a partition of a state topic to its end with the worker's client settings, no more.

`python -m benchmarks.reader` is started by the benchmarks; it prints how many records in which time, as JSON.
"""

import argparse
import json
import time
from pathlib import Path

from kafka import KafkaConsumer, TopicPartition

from stream_worker.settings import Settings
from stream_worker.transports.kafka import RESTORE_RECORDS
from stream_worker.transports.kafka_changelog import changelog_consumer_options


def read(settings: Settings) -> dict[str, float]:
    """Partition 0, to its high watermark; returns the number of records, and the time since the client was made."""
    start, cpu_start = time.monotonic(), time.process_time()
    consumer = KafkaConsumer(**changelog_consumer_options(settings))
    partition = TopicPartition(settings.state_topic, 0)
    consumer.assign([partition])
    count, end = 0, None
    while end is None or consumer.position(partition) < end:
        for records in consumer.poll(
            timeout_ms=int(settings.poll_timeout_s * 1000), max_records=RESTORE_RECORDS
        ).values():
            count += len(records)
        end = consumer.highwater(partition)
    found = {"records": count, "seconds": time.monotonic() - start, "cpu_s": time.process_time() - cpu_start}
    consumer.close()
    return found


def main() -> None:
    """Read, and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reader", description=__doc__)
    for name in ("--bootstrap", "--state-topic"):
        parser.add_argument(name, required=True)
    args = parser.parse_args()
    settings = Settings(bundle=Path(), bootstrap=args.bootstrap, state_topic=args.state_topic)
    print(json.dumps(read(settings)))


if __name__ == "__main__":
    main()
