"""What checkpoints cost: the same worker without any, and with one every so many seconds, at the same events in turns.

Throughput at a backlog that takes long enough for several checkpoints, and latency at a steady rate, as in bars.py.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks import bundles, figures
from benchmarks.arena import Arena, Size, Turns
from benchmarks.contenders import place, worker
from benchmarks.load import ZIPF, Load
from stream_worker.manifest import read_manifest

OFF = "off"
OFTEN_S, SELDOM_S = 1.0, 5.0
THROUGHPUT_OFTEN_BAR, THROUGHPUT_SELDOM_BAR, P99_BAR = 0.8, 0.9, 1.5
SIZE = Size(backlog=300_000)
SMOKE = Size(
    users=200, fill_each=3, warm_up=300, backlog=1500, rates=(100,), paced_s=0.6, paced_warm_up_s=0.1, repeats=1
)
SMOKE_SHORTER = 10  # the intervals of a smoke run, by this factor


def run(options: Any, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure; returns the result as it is written to JSON.

    Args:
        options: the flags of benchmarks/run.py.
        say: takes a line on how far it is.
    """
    size = SMOKE if options.smoke else SIZE
    size = replace(size, repeats=options.repeats or size.repeats)
    shorter = SMOKE_SHORTER if options.smoke else 1
    intervals_s = {OFF: math.inf, _name(OFTEN_S): OFTEN_S / shorter, _name(SELDOM_S): SELDOM_S / shorter}
    bundle = bundles.choose(options.bundle, options.smoke)
    action = next(iter(read_manifest(bundle).actions))
    load = Load(size.users, bundles.items(bundle), {action: 1}, options.seed)
    with place(options.bootstrap) as here, Arena(here, load) as arena:
        say(f"making the histories of {size.users:,} users")
        arena.fill(size.users, size.fill_each, as_events=False)
        say("starting the workers")
        entrants = [
            arena.enter(worker(here, bundle, name, checkpoint_interval_s=interval_s))
            for name, interval_s in intervals_s.items()
        ]
        turns = arena.compete(entrants, size, say)
    return _result(turns, size, bundle, options.seed)


def _name(interval_s: float) -> str:
    return f"{interval_s:g}s"


def _result(turns: Turns, size: Size, bundle: Path, seed: int) -> dict[str, Any]:
    backlog = {name: figures.backlog(each) for name, each in turns["backlog"].items()}
    all_paced = figures.all_paced(turns, size.rates)
    (paced,) = all_paced.values()
    often, seldom = _name(OFTEN_S), _name(SELDOM_S)
    return {
        "seed": seed,
        "load": asdict(size) | {"zipf": ZIPF},
        "bundle": bundles.describe(bundle),
        "backlog": backlog,
        "paced": all_paced,
        "checkpoints": {
            f"{phase} {name}": figures.checkpoints(each)
            for phase, of_phase in turns.items()
            for name, each in of_phase.items()
            if name != OFF
        },
        "bars": {
            "throughput_1s": figures.ratio(backlog, "events_per_s", often, OFF, at_least=THROUGHPUT_OFTEN_BAR),
            "throughput_5s": figures.ratio(backlog, "events_per_s", seldom, OFF, at_least=THROUGHPUT_SELDOM_BAR),
            "p99_1s": figures.ratio(paced, "p99_ms", often, OFF, at_most=P99_BAR),
            "p99_5s": figures.ratio(paced, "p99_ms", seldom, OFF),
            "cpu_1s": figures.ratio(backlog, "cpu_us_per_event", often, OFF),
            "cpu_5s": figures.ratio(backlog, "cpu_us_per_event", seldom, OFF),
        },
    }


def table(result: Mapping[str, Any]) -> list[str]:
    """The result for people."""
    return [
        *figures.setting(result),
        "",
        *figures.backlog_and_paced(result),
        "checkpoints: of how many users, how long, and how many users in all",
        *figures.rows(result["checkpoints"]),
        "",
        "ratios to the worker without checkpoints: median (least to most) of the pairs of one repeat",
        *figures.verdicts(result["bars"]),
    ]
