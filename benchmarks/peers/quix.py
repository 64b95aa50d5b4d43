"""A Quix Streams application with its state store, at-least-once.

As in its documentation ("Stateful Applications", "Processing & Transforming Data", "Configuration"): a streaming
dataframe whose function gets the user's `State`, a topic with JSON on either side, the defaults of the application:
RocksDB, a changelog topic, a checkpoint every five seconds.
"""

from typing import Any

from quixstreams import Application, State, message_context

from benchmarks.peers.recommender import Click, Recommender, arguments, is_import
from benchmarks.ready import READY


def main() -> None:
    """Run until SIGTERM."""
    args = arguments(__doc__)
    recommender = Recommender(args.bundle)
    app = Application(
        broker_address=args.bootstrap,
        consumer_group=args.group,
        auto_offset_reset="earliest",
        processing_guarantee="at-least-once",
        state_dir=args.state_dir,
        consumer_extra_config={
            "session.timeout.ms": args.session_timeout_s * 1000,
            "max.poll.interval.ms": args.session_timeout_s * 2000,
        },
    )
    events = app.topic(args.events_topic, value_deserializer="json")
    lists = app.topic(args.out_topic, value_serializer="json")

    def recommend(event: dict[str, Any], state: State) -> dict[str, Any] | None:
        history = recommender.fold(state.get("history"), event)
        state.set("history", history)
        if is_import(event):
            return None
        context = message_context()
        (found,) = recommender.lists([Click(event["user"], history, context.partition, context.offset)])
        return found

    stream = app.dataframe(events)
    stream = stream.apply(recommend, stateful=True)
    stream = stream.filter(lambda found: found is not None)
    stream.to_topic(lists)
    print(READY, flush=True)
    app.run()


if __name__ == "__main__":
    main()
