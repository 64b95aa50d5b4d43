"""What a list costs a worker that holds millions of users, beside one that holds ten thousand, in turns.

Every event of a backlog is of another user, so both change as many users between two checkpoints. Histories have a
geometric length with mean 14, as in `restore`.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from benchmarks import bundles, figures, states
from benchmarks.arena import Arena, Entrant
from benchmarks.contenders import place, worker
from benchmarks.load import Load
from stream_worker.manifest import read_manifest

BAR = 1.15


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    users: int = 5_000_000
    few: int = 10_000
    mean_history: int = 14
    backlog: int = 10_000
    repeats: int = 3


SMOKE = Size(users=2000, few=300, backlog=200, repeats=1)


def run(options: Any, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure; returns the result as it is written to JSON.

    Args:
        options: the flags of benchmarks/run.py.
        say: takes a line on how far it is.
    """
    size = SMOKE if options.smoke else Size()
    size = replace(size, repeats=options.repeats or size.repeats, users=options.users or size.users)
    bundle = bundles.choose(options.bundle, options.smoke)
    action = next(iter(read_manifest(bundle).actions))
    found: dict[str, list[dict[str, float]]] = {"few": [], "many": []}
    with place(options.bootstrap) as here, ExitStack() as stack:
        arenas: dict[str, tuple[Arena, Load, Entrant]] = {}
        for name, count in (("few", size.few), ("many", size.users)):
            say(f"{count:,} users")
            its_own = here._replace(prefix=f"{here.prefix}-{name}")
            load = Load(count, bundles.items(bundle), {action: 1}, options.seed)
            arena = stack.enter_context(Arena(its_own, load))
            length_B = np.random.default_rng(options.seed).geometric(1 / size.mean_history, count)
            arena.begin_with(load.states(np.minimum(length_B, states.HISTORY_LENGTH).astype(np.int32)))
            entrant = arena.enter(worker(its_own, bundle, name))
            arenas[name] = arena, load, entrant
        for arena, load, entrant in arenas.values():
            # To warm up; and the first one has stood still for minutes, after which it publishes nothing for a while.
            _turn(arena, load, entrant, size.backlog)
        for repeat in range(size.repeats):
            say(f"repeat {repeat + 1} of {size.repeats}")
            order = list(arenas.items()) if repeat % 2 == 0 else list(arenas.items())[::-1]
            for name, (arena, load, entrant) in order:
                found[name].append(_turn(arena, load, entrant, size.backlog))
    each = {name: figures.medians(one) for name, one in found.items()}
    return {
        "seed": options.seed,
        "load": asdict(size),
        "bundle": bundles.describe(bundle),
        "workers": each,
        "bars": {"cpu_5m_vs_10k_users": figures.ratio(each, "cpu_us_per_list", "many", "few", at_most=BAR)},
    }


def _turn(arena: Arena, load: Load, entrant: Entrant, count: int) -> dict[str, float]:
    """A backlog of so many users."""
    (turn,) = arena.drain(load.draw_distinct(count), [entrant]).values()
    return {
        "cpu_us_per_list": turn.cpu_s / turn.lists * 1e6,
        "lists_per_s": turn.lists / turn.seconds,
        "rss_mib": turn.rss_mib,
    }


def table(result: Mapping[str, Any]) -> list[str]:
    """The result for people."""
    load = result["load"]
    return [
        f"{load['few']:,} and {load['users']:,} users with histories of {load['mean_history']} (mean), backlogs of "
        f"{load['backlog']:,} events of as many users, {load['repeats']} repeats in turns, medians",
        *figures.rows(result["workers"]),
        "",
        *figures.verdicts(result["bars"]),
    ]
