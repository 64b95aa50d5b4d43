"""A worker on a log in memory: what a bundle serves, by the fold, batch and graph code of the product itself.

There is no second implementation to drift away from the first: events go through `Pipeline`, lists are read from its
topic, hits from its judge. Axes: K list length.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_worker.bundle import Bundle
from stream_worker.errors import SettingsError
from stream_worker.messages import decode_list
from stream_worker.metrics import HIT_RANKS, PREFIX, Metrics
from stream_worker.pipeline import Pipeline
from stream_worker.settings import Settings
from stream_worker.transports.base import Topic
from stream_worker.transports.memory import MemoryLog, MemoryTransport

BULK = 100_000  # records of a poll; the users of one poll share their lists' batches
NEVER_S = 3600.0  # between checkpoints: a replay has nobody to recover for

Row = tuple[str, str, str, int]  # user, item, action, time in epoch ms


class Listed(NamedTuple):
    """A list: item rows int32 [K], best first, -1 where it ends; scores float32 [K], NaN where they are not known."""

    rows_K: NDArray[np.int32]
    scores_K: NDArray[np.float32]


class Judged(msgspec.Struct, frozen=True):
    """What the worker's own judge counted: events, and by k those whose item was among the first k."""

    judged: int
    hits: dict[int, int]

    def __sub__(self, before: "Judged") -> "Judged":
        """What was counted since."""
        return Judged(self.judged - before.judged, {k: hits - before.hits[k] for k, hits in self.hits.items()})


class Replay:
    """One worker, one partition, no clock and no wait.

    Args:
        bundle: loaded; it is warmed up here.
        history_length: H, events kept of a user.
        excluded_length: E, items of excluding actions kept of a user.

    Raises:
        SettingsError: the bundle looks at more events than are kept.
        BundleError: the graph does not give here what it gave at export.
    """

    def __init__(self, bundle: Bundle, history_length: int, excluded_length: int) -> None:
        if history_length < bundle.manifest.L:
            raise SettingsError(
                f"--history-length {history_length}: {bundle.manifest.model} looks at {bundle.manifest.L} events. "
                f"Raise it to {bundle.manifest.L} or more."
            )
        bundle.warm_up()
        self.bundle = bundle
        # Not from the environment: STREAM_WORKER_… variables are a deployment's, and figures should not hang on them.
        settings = Settings.model_construct(
            bundle=bundle.path,
            history_length=history_length,
            excluded_length=excluded_length,
            checkpoint_interval_s=NEVER_S,
            max_dirty_users=2**31,
            max_users_per_partition=2**31,
        )
        self._variant = settings.variant
        self._row = {item: row for row, item in enumerate(bundle.items.ids)}
        self._log = MemoryLog()
        self._metrics = Metrics()
        transport = MemoryTransport(self._log, BULK)
        self._pipeline = Pipeline(settings, bundle, transport, self._metrics, clock=None)
        transport.open()
        self._lists: dict[str, Listed] = {}
        self._default = self._listed(bundle.default_list, np.full(len(bundle.default_list), np.nan))

    def feed(self, events: Iterable[Row]) -> None:
        """Fold these, each judged against the list before it, and make a new list of every user they touch.

        Fed alone, an event is one step of the worker. Fed together, the events of a user share a list.
        """
        for user, item, action, time_ms in events:
            value = {"user": user, "item": item, "action": action, "time": time_ms}
            self._log.append(msgspec.json.encode(value), user.encode(), timestamp=time_ms)
        while not self._done():
            self._pipeline.step(0)
        published = self._log.topics[Topic.RECOMMENDATIONS]
        for record in published:
            if record.value is None:  # forgotten
                assert record.key is not None
                self._lists.pop(record.key.decode(), None)
            else:
                top = decode_list(record.value)
                self._lists[top.user] = self._listed([self._row[item] for item in top.items], top.scores)
        published.clear()

    def list_of(self, user: str) -> tuple[Listed, bool]:
        """The user's newest list, or everybody's; and whether it is the user's own."""
        own = self._lists.get(user)
        return (self._default, False) if own is None else (own, True)

    def judged(self) -> dict[str, Judged]:
        """The counters of the worker's judge so far, of `own` lists and of the `default` one."""
        return {
            name: Judged(
                self._count("judged", list=name), {k: self._count("hits", list=name, k=str(k)) for k in HIT_RANKS}
            )
            for name in ("own", "default")
        }

    def _count(self, name: str, **labels: str) -> int:
        labels |= {"variant": self._variant}
        return int(self._metrics.registry.get_sample_value(f"{PREFIX}_{name}_total", labels) or 0)

    def _done(self) -> bool:
        """Whether the partition is ours, all of it is folded, and every list is made."""
        owned = self._pipeline.owned.get(0)
        behind = owned is None or owned.restoring or owned.next_offset < len(self._log.events[0])
        return not behind and not self._pipeline.marked

    def _listed(self, rows: Any, scores: Any) -> Listed:
        k = self.bundle.manifest.K
        rows_K, scores_K = np.full(k, -1, np.int32), np.full(k, np.nan, np.float32)
        rows_K[: len(rows)], scores_K[: len(scores)] = rows, scores
        return Listed(rows_K, scores_K)
