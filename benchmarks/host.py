"""The worker's own part: what an event costs in Python and NumPy, by stage, without a broker and beside the graph.

The real pipeline on a log in memory, so that no client's thread takes the interpreter away meanwhile. Two loads as in
`peers`: *uniform*, where hardly anything coalesces and every event makes a list, and *zipf*.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from structlog.testing import capture_logs

from benchmarks import bundles, figures, states
from benchmarks.load import ZIPF, Load
from stream_worker.bundle import Bundle
from stream_worker.manifest import read_manifest
from stream_worker.metrics import PREFIX, STAGES, Metrics
from stream_worker.pipeline import Pipeline
from stream_worker.settings import Settings
from stream_worker.transports.memory import MemoryLog, MemoryTransport

HOST = ("decode", "fold", "batch", "encode")  # what the bar is on
BAR_US = 12
LOADS = {"uniform": (200_000, 0.0), "zipf": (20_000, ZIPF)}  # users, exponent
EVENTS = 20_000
WARM_UP = 5_000
REPEATS = 3


def run(options: Any, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure; returns the result as it is written to JSON.

    Args:
        options: the flags of benchmarks/run.py.
        say: takes a line on how far it is.
    """
    path = bundles.choose(options.bundle, options.smoke, demo=False)
    events, repeats = (500, 1) if options.smoke else (options.events or EVENTS, options.repeats or REPEATS)
    found: dict[str, figures.Figures] = {}
    for name, (users, exponent) in LOADS.items():
        users = 300 if options.smoke else options.users or users
        say(f"{name}: making the histories of {users:,} users")
        with capture_logs():  # of a log in memory
            host = Host(path, users, exponent, options.seed)
        host.serve(WARM_UP if not options.smoke else events)
        each = []
        for _ in range(repeats):
            us_of = host.serve(events)
            each.append(us_of | {"host": sum(us_of[stage] for stage in HOST)})
        found[name] = figures.medians(each)
    return {
        "seed": options.seed,
        "bundle": bundles.describe(path),
        "load": {"events": events, "repeats": repeats},
        "us_per_event": found,
        "bars": {"host_us": figures.bar(found["uniform"]["repeats"]["host"], at_most=BAR_US)},
    }


class Host:
    """A pipeline whose users have full histories.

    Args:
        path: the bundle.
        users: how many.
        exponent: of Zipf's law, by which they click; 0 for evenly.
        seed: of the load.
    """

    def __init__(self, path: Path, users: int, exponent: float, seed: int) -> None:
        manifest = read_manifest(path)
        self._load = Load(users, bundles.items(path), {next(iter(manifest.actions)): 1}, seed, exponent)
        self._log = MemoryLog(now=time.time)
        transport = MemoryTransport(self._log)
        transport.open()
        bundle = Bundle(path)  # with batches of one size, whatever is fastest on this machine today
        bundle.warm_up()
        self._metrics = Metrics()
        settings = Settings(
            bundle=path,
            history_length=manifest.L,
            excluded_length=min(manifest.L, states.EXCLUDED_LENGTH),
            vector_cache_users=users,
        )
        self.pipeline = Pipeline(settings, bundle, transport, self._metrics)
        self.pipeline.step(0)
        self.pipeline.step(0)
        state = self.pipeline.owned[0].state
        for copy in self._load.states(np.full(users, manifest.L, np.int32)):
            state.take_over(copy)
        self.pipeline.actions.code(next(iter(manifest.actions)))

    def serve(self, count: int) -> dict[str, float]:
        """Answer so many events; wall time of each stage, us an event."""
        for key, value in self._load.draw(count):
            self._log.append(value, key)
        before = self._seconds()
        while self.pipeline.owned[0].next_offset < len(self._log.events[0]) or self.pipeline.marked:
            self.pipeline.step(0)
        after = self._seconds()
        return {stage: (after[stage] - before[stage]) / count * 1e6 for stage in STAGES}

    def _seconds(self) -> dict[str, float]:
        value = self._metrics.registry.get_sample_value
        return {stage: value(f"{PREFIX}_stage_seconds_sum", {"stage": stage}) or 0.0 for stage in STAGES}


def table(result: Mapping[str, Any]) -> list[str]:
    """The result for people."""
    load = result["load"]
    return [
        figures.served(result),
        f"{load['events']:,} events, seed {result['seed']}, {load['repeats']} repeats, medians",
        f"us an event by stage; host is {', '.join(HOST)}",
        *figures.rows(result["us_per_event"]),
        "",
        *figures.verdicts(result["bars"]),
    ]
