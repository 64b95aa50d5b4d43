"""What the page is told once a second: the figures of the stream, and how the workers are."""

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from itertools import chain

from demo.audience import Audience
from demo.ending import Ending
from demo.latency import Ledger, quantile
from demo.scrape import Workers
from demo.screen import Second
from demo.team import Team, Worker

WINDOW = 30  # seconds that histogram and quantiles look back
EDGES_MS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)  # the last bar has what is beyond
HISTORY = 60  # seconds of lists a second
ACTIVE = 12


class Report:
    """Figures and workers as JSON objects."""

    def __init__(
        self, team: Team, workers: Workers, ledger: Ledger, audience: Audience, ending: Ending, rate: float
    ) -> None:
        self._team = team
        self._workers = workers
        self._ledger = ledger
        self._audience = audience
        self._ending = ending
        self._rate = rate
        self._waits: deque[Sequence[float]] = deque(maxlen=WINDOW)
        self._lists_s: deque[int] = deque(maxlen=HISTORY)

    def figures(self, second: Second, events_left: int) -> dict[str, object]:
        """The stream, after one more second."""
        self._waits.append(second.waits)
        self._lists_s.append(round(second.lists))
        waits = sorted(chain.from_iterable(self._waits))
        compared = self._audience.comparison
        return {
            "time_s": round(second.time_s),
            "events_s": round(second.events),
            "lists_s": list(self._lists_s),
            "waiting": self._ledger.waiting,
            "p50_ms": _milliseconds(quantile(waits, 0.5)),
            "p99_ms": _milliseconds(quantile(waits, 0.99)),
            "edges_ms": EDGES_MS,
            "bars": bars(waits),
            "judged": compared.judged,
            "own_hits": compared.own_hits,
            "popular_hits": compared.popular_hits,
            "active": self._audience.active(ACTIVE),
            "seconds_left": self._ending.seconds_left(second.time_s, events_left, self._rate),
            "replaying": events_left > 0,
        }

    def workers(self) -> list[dict[str, object]]:
        """Each worker, its state and its partitions."""
        return [self._worker(worker) for worker in self._team.workers]

    def holdings(self) -> dict[int, list[int]]:
        """The partitions of each worker that runs."""
        return {
            worker.number: sorted(int(labels["partition"]) for labels, _ in self._workers.gauges(worker.port, "users"))
            for worker in self._team.workers
            if worker.runs
        }

    def _worker(self, worker: Worker) -> dict[str, object]:
        held = self._workers.gauges(worker.port, "users") if worker.runs else []
        if not worker.runs:
            state = "killed" if worker.killed else "ended"
        else:
            state = "running" if held else "starting"
        return {
            "number": worker.number,
            "pid": worker.child.pid,
            "state": state,
            "since_s": round(time.monotonic() - worker.since),
            "partitions": sorted(int(labels["partition"]) for labels, _ in held),
            "users": int(sum(value for _, value in held)),
        }


def bars(waits: Sequence[float]) -> list[int]:
    """How many waits, in seconds, lie below each of EDGES_MS and above the one before; and beyond the last."""
    counts = [0] * (len(EDGES_MS) + 1)
    for wait in waits:
        counts[bisect_right(EDGES_MS, wait * 1000)] += 1
    return counts


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)
