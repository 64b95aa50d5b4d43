"""Every metric, once: name, type, unit, help, buckets (docs/metrics.md). No user or item ever is a label.

Children of labels are bound where they are used and kept; `labels()` takes a lock and is no hot-path call.
"""

import time
from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from stream_worker.fold import Fold
from stream_worker.histogram import BulkHistogram

PREFIX = "stream_worker"
STAGES = ("poll", "decode", "fold", "batch", "infer", "encode", "publish", "checkpoint")
HIT_RANKS = (1, 5, 10, 20)
MAX_ACTION_LABELS = 20  # the names come from outside; the rest is counted as "other"

# Edges at most 1.6 apart up to 10 s, so that a quantile read from them is off by no more than that.
LATENCY_BUCKETS = (
    .0005, .00075, .001, .0015, .002, .003, .004, .006, .008, .012, .016, .025, .035, .05, .075, .1,
    .15, .2, .3, .4, .6, .8, 1.2, 1.6, 2.5, 4, 6, 10, 30, 60, 300,
)  # fmt: skip
STAGE_BUCKETS = (.00001, .00003, .0001, .0003, .001, .003, .01, .03, .1, .3, 1, 3, 10)  # fmt: skip
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """All metrics of one worker, on a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # process_…, under the names that everybody knows

        self.catalogue: list[tuple[str, str, tuple[str, ...], str]] = []  # name, type, labels, help: docs/metrics.md

        def note(name: str, kind: str, labels: tuple[str, ...], text: str) -> None:
            self.catalogue.append((f"{PREFIX}_{name}", kind, labels, text))

        def counter(name: str, text: str, *labels: str) -> Counter:
            note(f"{name}_total", "counter", labels, text)
            return Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            note(name, "gauge", labels, text)
            return Gauge(f"{PREFIX}_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            note(name, "histogram", labels, text)
            return Histogram(f"{PREFIX}_{name}", text, labels, buckets=buckets, registry=self.registry)

        text = "From the Kafka timestamp of the oldest event that a list is the first to cover to its acknowledgement."
        note("event_to_list_seconds", "histogram", ("catching_up",), text)
        self.event_to_list = BulkHistogram(
            f"{PREFIX}_event_to_list_seconds", text, LATENCY_BUCKETS, "catching_up", ("false", "true"), self.registry
        )
        self.stage = histogram(
            "stage_seconds",
            "Time of one stage of one step; of batch, infer and encode: of each inference.",
            STAGE_BUCKETS,
            "stage",
        )
        self.events = counter("events", "Events folded.", "action")
        self.lists = counter("lists", "Lists acknowledged.", "model", "variant")
        self.unknown = counter("unknown", "Events whose item or action the model does not know.", "kind")
        self.rejected = counter("rejected", "Events sent to the rejected topic.", "reason")
        self.duplicates = counter("duplicates", "Events with the item, action and second of one in the history.")
        self.late = counter("late", "Events older than the user's newest.")
        self.lost_events = counter("lost_events", "Events deleted from the topic before they were read.")
        self.evicted = counter("evicted", "Users forgotten: for room, by age, or on request.", "reason")
        self.batch_users = histogram("batch_users", "Users in one run of the graph.", BATCH_BUCKETS)
        self.coalesced = counter("coalesced", "Events that share a list with a later event of the same user.")
        self.lag_records = gauge("lag_records", "Records not yet polled.", "partition")
        self.lag_seconds = gauge("lag_seconds", "Age of the last record polled, 0 without lag.", "partition")
        self.users = gauge("users", "Users held.", "partition")
        self.state_bytes = gauge("state_bytes", "Bytes of the state slabs, and of what the model keeps of users.")
        self.pending_users = gauge("pending_users", "Users with events that no list covers yet.")
        self.publish_failures = counter("publish_failures", "Records not acknowledged in time and made anew.", "topic")
        self.checkpoint_seconds = histogram(
            "checkpoint_seconds", "From the copy of the changed states to their confirmation.", LATENCY_BUCKETS
        )
        self.checkpoint_failures = counter("checkpoint_failures", "Checkpoints not written and tried again.", "cause")
        self.checkpoint_users = counter("checkpoint_users", "States written by checkpoints.")
        self.checkpoint_age = gauge(
            "checkpoint_age_seconds", "Time since all was written that a crash would make a worker fold again."
        )
        self.restore_seconds = histogram(
            "restore_seconds", "From assignment of a partition to its state being complete.", LATENCY_BUCKETS
        )
        self.restoring = gauge("restoring", "1 while the partition's state is being rebuilt.", "partition")
        self.topics_missing = gauge("topics_missing", "Topics that are gone or not to be seen.")
        self.rebalances = counter("rebalances", "Changes of the assignment.")
        self.in_flight_bytes = gauge("in_flight_bytes", "Keys and values produced and not yet acknowledged.")
        self.model_info = gauge("model_info", "1 for the model that is served.", "model", "variant", "device")
        self.model_age = gauge("model_age_seconds", "Time since the model was exported.")
        self.item_rows = gauge("item_rows", "Items the model knows.")
        self.judged = counter(
            "judged", "Events judged by the list before them: not hide and dislike.", "variant", "list"
        )
        self.hits = counter("hits", "Judged events whose item was among the first k of it.", "variant", "list", "k")
        self.ready = gauge("ready", "1 where /readyz says so: partitions restored, states written, the broker answers.")
        self.last_step = gauge("last_step_timestamp_seconds", "When the main loop last completed a step, Unix time.")

        self.unknown_items = self.unknown.labels(kind="item")
        self.unknown_actions = self.unknown.labels(kind="action")
        self.evicted_for = {reason: self.evicted.labels(reason=reason) for reason in ("room", "ttl", "forget")}
        self._actions: dict[str, Counter] = {}

    def count_folds(self, actions: Mapping[str, int], outcomes: Sequence[int], coalesced: int) -> None:
        """Count what became of the events of one partition's poll.

        Args:
            actions: events that count, by action.
            outcomes: how many events had each outcome of `Fold`.
            coalesced: events whose user was marked already.
        """
        for name, count in actions.items():
            if name not in self._actions:
                label = name if len(self._actions) < MAX_ACTION_LABELS else "other"
                self._actions[name] = self.events.labels(action=label)
            self._actions[name].inc(count)
        self.late.inc(outcomes[Fold.LATE] + outcomes[Fold.TOO_OLD])
        self.duplicates.inc(outcomes[Fold.DUPLICATE])
        self.coalesced.inc(coalesced)

    def total(self, name: str) -> int:
        """The sum of a counter over its labels, by its name without prefix and `_total`."""
        families = self.registry.collect()
        samples = (sample for family in families if family.name == f"{PREFIX}_{name}" for sample in family.samples)
        return int(sum(sample.value for sample in samples if sample.name.endswith("_total")))

    def drop_partition(self, partition: int) -> None:
        """Forget the gauges of a partition that is no longer ours."""
        for gauge in (self.lag_records, self.lag_seconds, self.users, self.restoring):
            gauge.remove(str(partition))


class Stopwatch:
    """Times the stages of a step: each call ends a stage that began where the one before ended."""

    def __init__(self, metrics: Metrics) -> None:
        self._observe = {name: metrics.stage.labels(stage=name).observe for name in STAGES}
        self._last = 0.0

    def start(self) -> None:
        """A step begins."""
        self._last = time.perf_counter()

    def __call__(self, stage: str) -> None:
        """A stage is over."""
        now = time.perf_counter()
        self._observe[stage](now - self._last)
        self._last = now
