"""A log in memory with a worker's pipeline on it, and how to look at both."""

from collections.abc import Sequence
from typing import Any

import msgspec

from stream_worker.bundle import Bundle
from stream_worker.events import Events
from stream_worker.fold import Fold
from stream_worker.messages import Event, TopK, decode_list
from stream_worker.metrics import Metrics
from stream_worker.pipeline import Pipeline
from stream_worker.settings import Settings
from stream_worker.state import Actions, Partition
from stream_worker.transports.base import Topic
from stream_worker.transports.memory import MemoryLog, MemoryTransport

START_MS = 1_767_225_600_000  # 2026-01-01


def settings(bundle: Bundle, **changes: Any) -> Settings:
    """Settings without the environment's."""
    return Settings(**{"bundle": bundle.path, "checkpoint_interval_s": 1e-9, **changes})


class World:
    """One log, one worker; `restart` is a new process on the same log."""

    def __init__(self, bundle: Bundle, partitions: int = 1, **changes: Any) -> None:
        self.bundle = bundle
        self.settings = settings(bundle, **changes)
        self.log = MemoryLog(partitions, now=lambda: START_MS / 1000 + 1)
        self.restart()

    def restart(self) -> None:
        """A fresh worker; the one before is gone without a word, as after kill -9."""
        self.log.members.clear()
        self.transport, self.pipeline, self.metrics = self.worker()

    def worker(self) -> tuple[MemoryTransport, Pipeline, Metrics]:
        """One more worker in the group."""
        transport, metrics = MemoryTransport(self.log, self.settings.max_poll_records), Metrics()
        pipeline = Pipeline(self.settings, self.bundle, transport, metrics, self.log.now)
        transport.open()
        return transport, pipeline, metrics

    def event(self, user: str, item: str, partition: int = 0, second: int = 0, **fields: Any) -> int:
        """Append an event `second` seconds into 2026."""
        value = {"user": user, "item": item, "time": START_MS + second * 1000, **fields}
        return self.log.append(msgspec.json.encode(value), user.encode(), partition)

    def settle(self, pipeline: Pipeline | None = None, most_steps: int = 1000) -> None:
        """Step until nothing is left to do."""
        pipeline = pipeline or self.pipeline
        for _ in range(most_steps):
            pipeline.step(0)
            behind = any(one.next_offset < len(self.log.events[number]) for number, one in pipeline.owned.items())
            if not behind and not pipeline.marked:
                for _ in range(3):  # see the acknowledgements, begin a checkpoint, see its end
                    pipeline.step(0)
                return
        raise AssertionError(f"not settled after {most_steps} steps")

    def finish(self, *pipelines: Pipeline, most_steps: int = 1000) -> None:
        """Step these workers in turns until all is folded, listed, acknowledged and on the changelog."""
        pipelines = pipelines or (self.pipeline,)
        quiet = 0  # steps; after the first, the last checkpoint may still be under way
        for _ in range(most_steps):
            for pipeline in pipelines:
                pipeline.step(0)
            owned = [one for pipeline in pipelines for one in pipeline.owned.values()]
            ends = {number: len(events) for number, events in enumerate(self.log.events)}
            written = {one.state.number: one.written for one in owned} == ends
            busy = any(one.restoring or one.state.changed or one.state.owed() for one in owned)
            quiet = quiet + 1 if written and not busy and not any(one.marked for one in pipelines) else 0
            if quiet == 2:
                return
        raise AssertionError(f"not finished after {most_steps} steps")

    def expel(self, transport: MemoryTransport) -> None:
        """The group gives a silent worker's partitions to others; it hears of that when it asks."""
        self.log.members.remove(transport)
        self.log.rebalance()

    def lists(self) -> list[TopK]:
        """All lists ever published."""
        return [decode_list(record.value) for record in self.log.topics[Topic.RECOMMENDATIONS] if record.value]

    def newest(self) -> dict[str, TopK]:
        """The newest list of each user."""
        return {top.user: top for top in self.lists()}


def fold_one(
    state: Partition, event: Event, item: int, action: int, excluding: bool, offset: int, timestamp: int
) -> tuple[int, Fold]:
    """Fold a batch of one; its row, and what became of it."""
    events = Events()
    events.add(event.user, item, event.time_ms // 1000, action, offset, timestamp)
    rows_E, outcomes_E = state.fold(events, [excluding] * (action + 1))
    return int(rows_E[0]), Fold(outcomes_E[0])


def exact(state: Partition, actions: Actions) -> dict[str, dict[str, Any]]:
    """Every user's exact state in plain values."""
    users = {}
    for row, user in enumerate(state.users):
        if user is None:
            continue
        length, copied = int(state.length[row]), state.gather([row])
        kept = int(copied.excluded_length_B[0])
        users[user] = {
            "history": _triples(state, row, length, actions.names),
            "excluded": [
                (int(item), actions.names[action])
                for item, action in zip(
                    copied.excluded_items_BE[0, :kept], copied.excluded_actions_BE[0, :kept], strict=True
                )
            ],
            "events": int(state.events[row]),
            "applied": int(state.applied_offset[row]),
            "received": int(state.timestamp[row]),
        }
    return users


def _triples(state: Partition, row: int, length: int, names: Sequence[str]) -> list[tuple[int, int, str]]:
    return [
        (int(state.items[row, place]), int(state.times[row, place]), names[state.actions[row, place]])
        for place in range(length)
    ]
