"""A Bytewax dataflow: histories in a stateful step, clicks collected to batches of 32, one run of the graph for each.

As in its documentation ("Kafka connector", "Stateful Operators", `operators.collect`): Kafka operators on either side,
`stateful_flat_map` keyed by user, `collect` on one key for all. Without a recovery store, so it has no durable state:
that is in its favour.
"""

import signal
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import bytewax.operators as op
import orjson
from bytewax.connectors.kafka import KafkaSinkMessage, KafkaSourceMessage
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow
from bytewax.errors import BytewaxRuntimeError
from bytewax.run import cli_main

from benchmarks.peers.recommender import Click, History, Recommender, arguments, is_import
from benchmarks.ready import READY

BATCH = 32
WAIT = timedelta(milliseconds=20)  # for a batch to fill
Event = tuple[int, int, dict[str, Any]]  # partition, offset, what it says


def dataflow(brokers: list[str], events_topic: str, out_topic: str, recommender: Recommender) -> Dataflow:
    """From clicks to lists."""

    def parse(message: KafkaSourceMessage) -> tuple[str, Event]:
        event = orjson.loads(message.value)
        return event["user"], (message.partition, message.offset, event)

    def remember(history: History | None, value: Event) -> tuple[History, Iterable[Click]]:
        partition, offset, event = value
        history = recommender.fold(history, event)
        return history, [] if is_import(event) else [Click(event["user"], history, partition, offset)]

    def recommend(batch: tuple[str, list[Click]]) -> list[KafkaSinkMessage]:
        return [KafkaSinkMessage(found["user"].encode(), orjson.dumps(found)) for found in recommender.lists(batch[1])]

    flow = Dataflow("recommendations")
    source = kop.input("events", flow, brokers=brokers, topics=[events_topic])
    op.raises("crash", source.errs)
    clicks = op.stateful_flat_map("history", op.map("parse", source.oks, parse), remember)
    together = op.map("together", clicks, lambda click: ("all", click[1]))
    batches = op.collect("batch", together, timeout=WAIT, max_size=BATCH)
    lists = op.flat_map("recommend", batches, recommend)
    kop.output("lists", lists, brokers=brokers, topic=out_topic)
    return flow


def main() -> None:
    """Run until SIGTERM."""
    args = arguments(__doc__)
    flow = dataflow(args.bootstrap.split(","), args.events_topic, args.out_topic, Recommender(args.bundle))
    stopping: list[int] = []

    def stop(number: int, _frame: object) -> None:
        stopping.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    print(READY, flush=True)
    try:
        cli_main(flow)
    except (BytewaxRuntimeError, KeyboardInterrupt):  # the former wraps whatever is raised within a step
        if not stopping:
            raise


if __name__ == "__main__":
    main()
