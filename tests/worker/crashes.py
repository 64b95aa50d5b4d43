"""A worker that can be killed inside any verb: what the test lends to it raises `Crash` when that is scripted."""

from typing import Any, cast

import msgspec

from stream_worker.batch import Feeds
from stream_worker.bundle import Bundle
from stream_worker.metrics import Metrics
from stream_worker.pipeline import Pipeline
from stream_worker.transports.memory import Crash, MemoryTransport
from tests.worker.world import World

STEPS = ("checkpoint", "write", "commit", "confirm")  # of a checkpoint, in the memory transport
DURING = ("poll", "decode", "fold", "infer", "encode", "publish", *STEPS)
LENT = {"decode", "fold", "infer", "encode"}  # these are not calls of the transport


class Script:
    """Where the next crash is, and how many calls go well before it."""

    def __init__(self) -> None:
        self._place = ""
        self._left = 0

    def arm(self, place: str, n: int) -> None:
        """Crash at the n-th call from now on."""
        self._place, self._left = place, n

    def __call__(self, place: str) -> None:
        """A call."""
        if place == self._place:
            self._left -= 1
            if not self._left:
                self._place = ""
                raise Crash(f"scripted crash: {place}")


script = Script()  # one for all, because a decoder is found by its name


def decode(value: bytes) -> Any:
    """For `event_decoder`."""
    script("decode")
    return msgspec.json.decode(value)


class CrashingBundle(Bundle):
    """May crash before the graph runs."""

    def infer(self, feeds: Feeds) -> Feeds:
        """See `Bundle`."""
        script("infer")
        return super().infer(feeds)


class CrashingStage:
    """The histogram `stage_seconds`, which hears of the end of each verb."""

    def __init__(self, histogram: Any, stage: str = "") -> None:
        self._histogram = histogram
        self._stage = stage

    def labels(self, stage: str) -> "CrashingStage":
        """See prometheus_client."""
        return CrashingStage(self._histogram.labels(stage=stage), stage)

    def observe(self, seconds: float) -> None:
        """See prometheus_client."""
        self._histogram.observe(seconds)
        script(f"after {self._stage}")


class CrashingMetrics(Metrics):
    """May crash when a partition is folded, and others are not yet; and at the end of each verb."""

    def __init__(self) -> None:
        super().__init__()
        cast(Any, self).stage = CrashingStage(self.stage)

    def count_folds(self, *counts: Any) -> None:
        """See `Metrics`."""
        super().count_folds(*counts)
        script("fold")


class CrashingWorld(World):
    """Its workers can be killed at `DURING` and "after VERB"."""

    def worker(self) -> tuple[MemoryTransport, Pipeline, Metrics]:
        """See `World`."""
        transport, metrics = MemoryTransport(self.log, self.settings.max_poll_records), CrashingMetrics()
        pipeline = Pipeline(self.settings, self.bundle, transport, metrics, self._clock)
        transport.open()
        return transport, pipeline, metrics

    def arm(self, place: str, n: int) -> None:
        """Crash at the n-th call from now on."""
        if place in LENT or place.startswith("after "):
            script.arm(place, n)
        else:
            self.transport.crash_at(place, n)

    def _clock(self) -> float:
        script("encode")  # the lists of a batch are given their time
        return self.log.now()
