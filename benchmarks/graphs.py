"""What the graph alone costs: CPU a list of each model of the zoo, on one core, in turns.

Random weights, full histories, as many items and as long a list as in the other benchmarks.
"""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import numpy as np

from benchmarks import bundles, figures
from stream_worker.batch import NO_ITEM, Feeds
from stream_worker.bundle import Bundle
from stream_worker.vectors import nothing

MODELS = (
    "sasrec",
    "hybrid",
    "tower-hybrid",
    "streaming-transformer",
    "two-tower",
    "ncf",
    "gru4rec",
    "mf",
    "rules",
    "itemknn",
)
BATCHES = (1, 32)
BLEND_BAR = 1.5
SECONDS = 0.5  # of each turn
REPEATS = 5


def run(options: Any, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure; returns the result as it is written to JSON.

    Args:
        options: the flags of benchmarks/run.py.
        say: takes a line on how far it is.
    """
    count, dim, length = (256, 16, 10) if options.smoke else (bundles.ITEMS, bundles.DIM, bundles.LENGTH)
    loaded = {}
    for name in MODELS[:2] if options.smoke else MODELS:
        say(f"making {name}")
        loaded[name] = Bundle(bundles.synthetic(count, dim, length, name))
    repeats, seconds = (1, 0.02) if options.smoke else (options.repeats or REPEATS, SECONDS)
    found: dict[str, dict[str, float]] = {name: {} for name in loaded}
    ratios = {}
    for batch in BATCHES:
        turns: dict[str, list[float]] = {name: [] for name in loaded}
        for _ in range(repeats):
            for name, bundle in loaded.items():
                turns[name].append(us_per_list(bundle, batch, seconds, options.seed))
        for name, us in turns.items():
            found[name][f"us_batch_{batch}"] = median(us)
        pairs = zip(turns["hybrid"], turns["sasrec"], strict=True)
        ratios[batch] = [hybrid / sequence for hybrid, sequence in pairs]
    return {
        "seed": options.seed,
        "load": {"items": count, "dim": dim, "length": length, "repeats": repeats},
        "models": found,
        "bars": {"hybrid_vs_sequence": figures.bar(ratios[BATCHES[-1]], at_most=BLEND_BAR)},
    }


def us_per_list(bundle: Bundle, batch: int, seconds: float, seed: int) -> float:
    """CPU microseconds a list of the graph alone, run for so long after a warm-up of one batch."""
    feeds = feeds_of(bundle, batch, np.random.default_rng(seed))
    bundle.infer(feeds)
    start, lists = time.process_time(), 0
    while (used := time.process_time() - start) < seconds:
        bundle.infer(feeds)
        lists += batch
    return used / lists * 1e6


def feeds_of(bundle: Bundle, batch: int, rng: np.random.Generator) -> Feeds:
    """Full histories; of a recurrent model's events the newest is new."""
    manifest = bundle.manifest
    items_BL = rng.integers(0, manifest.items, (batch, manifest.L)).astype(np.int32)
    times_BL = 1_700_000_000_000 + np.cumsum(rng.integers(1, 10_000, items_BL.shape), 1) * 1000
    events: Feeds = {"items": items_BL, "actions": np.ones_like(items_BL, np.uint8), "times": times_BL}
    return {
        **{f"history_{name}": array for name, array in events.items()},
        **{f"new_{name}": array[:, -1:] for name, array in events.items()},
        "now": times_BL[:, -1],
        **nothing(manifest.kept, batch),
        "excluded_items": np.where(rng.random(items_BL.shape) < 0.8, items_BL, np.int32(NO_ITEM)),
    }


def table(result: Mapping[str, Any]) -> list[str]:
    """The result for people."""
    load = result["load"]
    columns = list(next(iter(result["models"].values())))
    lines = [
        f"load   {load['items']:,} items of {load['dim']}, histories of {load['length']}, "
        f"{load['repeats']} repeats in turns, medians",
        "",
        " " * 24 + "".join(f"{name:>14}" for name in columns),
    ]
    lines += [
        f"  {name:22}" + "".join(f"{us[column]:14.1f}" for column in columns) for name, us in result["models"].items()
    ]
    return [*lines, "", *figures.verdicts(result["bars"])]
