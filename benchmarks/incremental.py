"""What a click costs a model that keeps keys and values, beside the same blocks over the whole window, in turns.

Random weights, full histories, one new event a user. `kept_us` is what the worker pays besides for rings and vector:
copying them out of the cache and writing what is new; it belongs to the stages batch and encode, not to infer.
*cache*: the same in float16 at rest, and how many items of a list it changes after more clicks than the window holds.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import bundles, figures
from benchmarks.graphs import REPEATS, SECONDS, feeds_of, us_per_list
from stream_worker.batch import NO_ITEM, Feeds
from stream_worker.bundle import Bundle
from stream_worker.vectors import Precision, VectorCache

RECOMPUTE, INCREMENTAL = "sasrec", "streaming-transformer"
LENGTHS = (50, 200)
BATCHES = (1, 32)
BAR = 10
BAR_AT = (200, 32)
USERS = 1000  # in the cache: far more than fit into the processor's own
PRECISIONS: tuple[Precision, ...] = ("float32", "float16")
CLICKS_BEYOND = 20  # the window, whose lists are compared


def run(options: Any, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure; returns the result as it is written to JSON.

    Args:
        options: the flags of benchmarks/run.py.
        say: takes a line on how far it is.
    """
    count, dim, lengths = (256, 16, (10,)) if options.smoke else (bundles.ITEMS, bundles.DIM, LENGTHS)
    repeats, seconds = (1, 0.02) if options.smoke else (options.repeats or REPEATS, SECONDS)
    found: dict[str, dict[str, Any]] = {}
    caches: dict[str, dict[str, float]] = {}
    bars = {}
    for length in lengths:
        say(f"L = {length}")
        both = {name: Bundle(bundles.synthetic(count, dim, length, name)) for name in (RECOMPUTE, INCREMENTAL)}
        say("the cache in half precision")
        caches |= {
            f"L {length}, {precision}": figures_of
            for precision, figures_of in _caches(both[INCREMENTAL], BATCHES[-1], seconds, options.seed).items()
        }
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
        "caches": caches,
        "bars": bars,
    }


def _caches(bundle: Bundle, users: int, seconds: float, seed: int) -> dict[Precision, dict[str, float]]:
    """Of each precision: bytes a user, `kept_us`, and the share of items that lists have in common with the first's."""
    lists = {precision: _lists(bundle, users, precision, seed) for precision in PRECISIONS}
    exact = lists[PRECISIONS[0]]
    found = {}
    for precision, ours in lists.items():
        shared = [len(np.intersect1d(one, other)) / len(one) for one, other in zip(exact, ours, strict=True)]
        found[precision] = {
            "bytes_per_user": VectorCache(bundle.manifest.kept, 1, precision).slot_bytes,
            "kept_us": _kept_us(bundle, users, seconds, seed, precision),
            "overlap": float(np.mean(shared)),
            "same_items": float(np.mean([share == 1 for share in shared])),
        }
    return found


def _lists(bundle: Bundle, users: int, precision: Precision, seed: int) -> NDArray[np.int64]:
    """Lists [lists, K] of users after each of the last clicks, all of which went through the cache one by one."""
    manifest, rng = bundle.manifest, np.random.default_rng(seed)
    clicks = manifest.L + CLICKS_BEYOND
    items_BT = rng.integers(0, manifest.items, (users, clicks)).astype(np.int32)
    times_BT = 1_700_000_000_000 + np.cumsum(rng.integers(1, 10_000, items_BT.shape), 1) * 1000
    events: Feeds = {"items": items_BT, "actions": np.ones_like(items_BT, np.uint8), "times": times_BT}
    cache, keys_B = VectorCache(manifest.kept, users, precision), np.zeros(users, np.int64)
    found = []
    for click in range(1, clicks + 1):
        first = max(0, click - manifest.L)
        slots_B = cache.find(keys_B)
        feeds: Feeds = {
            **{f"history_{name}": array[:, first:click] for name, array in events.items()},
            **{f"new_{name}": array[:, click - 1 : click] for name, array in events.items()},
            "now": times_BT[:, click - 1],
            "excluded_items": np.full((users, 8), NO_ITEM, np.int32),
            **cache.take(slots_B, users),
        }
        outputs = bundle.infer(feeds)
        keys_B = cache.keep(slots_B, outputs)
        if click > manifest.L:
            found.append(outputs["items"])
    return np.concatenate(found)


def _kept_us(bundle: Bundle, batch: int, seconds: float, seed: int, precision: Precision = PRECISIONS[0]) -> float:
    """CPU microseconds a list of finding, copying and writing what is kept, of users drawn anew for every batch."""
    rng = np.random.default_rng(seed)
    cache = VectorCache(bundle.manifest.kept, USERS, precision)
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
        f"what is kept of a user, at rest, and lists of {CLICKS_BEYOND} clicks beyond the window",
        *figures.rows(result["caches"]),
        "",
        *figures.verdicts(result["bars"]),
    ]
