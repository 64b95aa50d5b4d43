"""What a click costs a model that keeps keys and values, beside the same blocks over the whole window, in turns.

Random weights, full histories, one new event a user. `kept_us` is what the worker pays besides for rings and vector:
copying them out of the cache and writing what is new; it belongs to the stages batch and encode, not to infer.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks import bundles, figures
from benchmarks.graphs import REPEATS, SECONDS, feeds_of, us_per_list
from stream_worker.bundle import Bundle
from stream_worker.vectors import VectorCache

RECOMPUTE, INCREMENTAL = "sasrec", "streaming-transformer"
LENGTHS = (50, 200)
BATCHES = (1, 32)
BAR = 10
BAR_AT = (200, 32)
USERS = 1000  # in the cache: far more than fit into the processor's own


def run(options: Any, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure; returns the result as it is written to JSON.

    Args:
        options: the flags of benchmarks/run.py.
        say: takes a line on how far it is.
    """
    count, dim, lengths = (256, 16, (10,)) if options.smoke else (bundles.ITEMS, bundles.DIM, LENGTHS)
    repeats, seconds = (1, 0.02) if options.smoke else (options.repeats or REPEATS, SECONDS)
    found: dict[str, dict[str, Any]] = {}
    bars = {}
    for length in lengths:
        say(f"L = {length}")
        both = {name: Bundle(bundles.synthetic(count, dim, length, name)) for name in (RECOMPUTE, INCREMENTAL)}
        for batch in BATCHES:
            each: list[dict[str, float]] = []
            for _ in range(repeats):
                us = {name: us_per_list(bundle, batch, seconds, options.seed) for name, bundle in both.items()}
                kept = _kept_us(both[INCREMENTAL], batch, seconds, options.seed)
                each.append({"recompute_us": us[RECOMPUTE], "incremental_us": us[INCREMENTAL], "kept_us": kept})
            found[f"L {length}, batch {batch}"] = figures.medians(each)
            if (length, batch) == BAR_AT or options.smoke:
                ratios = [one["recompute_us"] / one["incremental_us"] for one in each]
                bars["incremental_vs_recompute"] = figures.bar(ratios, at_least=BAR)
    return {
        "seed": options.seed,
        "load": {"items": count, "dim": dim, "lengths": list(lengths), "repeats": repeats},
        "us_per_list": found,
        "bars": bars,
    }


def _kept_us(bundle: Bundle, batch: int, seconds: float, seed: int) -> float:
    """CPU microseconds a list of finding, copying and writing what is kept, of users drawn anew for every batch."""
    rng = np.random.default_rng(seed)
    cache = VectorCache(bundle.manifest.kept, USERS)
    outputs = bundle.infer(feeds_of(bundle, batch, rng))
    keys_U = np.zeros(USERS, np.int64)
    for start in range(0, USERS - batch + 1, batch):
        some = slice(start, start + batch)
        keys_U[some] = cache.keep(cache.find(keys_U[some]), outputs)
    drawn = [rng.permutation(USERS // batch * batch)[:batch] for _ in range(64)]
    start_s, lists = time.process_time(), 0
    while (used := time.process_time() - start_s) < seconds:
        for users_B in drawn:
            slots_B = cache.find(keys_U[users_B])
            cache.take(slots_B, batch)
            cache.keep(slots_B, outputs)
        lists += batch * len(drawn)
    return used / lists * 1e6


def table(result: Mapping[str, Any]) -> list[str]:
    """The result for people."""
    load = result["load"]
    return [
        f"load   {load['items']:,} items of {load['dim']}, full histories, one new event, {load['repeats']} repeats in "
        "turns, medians; CPU us a list",
        *figures.rows(result["us_per_list"]),
        "",
        *figures.verdicts(result["bars"]),
    ]
