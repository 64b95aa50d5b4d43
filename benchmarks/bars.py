"""The bars: one worker beside an echo of the same client, on the same events, in turns.

Throughput and CPU: events that were produced while all stood still are drained at full speed. Latency: events come
one by one at a steady rate; a sample is the time from the oldest event that a list is the first to cover to that
list, both by the broker's clock (LogAppendTime of both topics), so that nothing of the measuring is in it.
"""

import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import bundles, figures
from benchmarks.arena import Arena, Entrant, Turn
from benchmarks.contenders import Place, echo, worker
from benchmarks.load import ZIPF, Load
from demo.broker import Broker
from stream_worker.bundle import ItemRow
from stream_worker.manifest import ITEM_ROWS, read_manifest

THROUGHPUT_BAR, P99_BAR = 0.35, 3.0


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    users: int = 20_000
    fill_each: int = 50
    warm_up: int = 20_000
    backlog: int = 60_000
    rate: float = 500
    paced_s: float = 15
    paced_warm_up_s: float = 1
    repeats: int = 3


SMOKE = Size(users=200, fill_each=3, warm_up=300, backlog=1500, rate=100, paced_s=1, paced_warm_up_s=0.2, repeats=1)


def run(options: Any, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure; returns the result as it is written to JSON.

    Args:
        options: the flags of benchmarks/run.py.
        say: takes a line on how far it is.
    """
    size = SMOKE if options.smoke else Size()
    size = Size(**{**asdict(size), "repeats": options.repeats or size.repeats})
    bundle = bundles.choose(options.bundle, options.smoke)
    action = next(iter(read_manifest(bundle).actions))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stream-worker-bench-")))
        bootstrap = options.bootstrap or stack.enter_context(Broker()).bootstrap
        place = Place(bootstrap, f"bench-{uuid.uuid4().hex[:8]}", folder)
        load = Load(size.users, _items(bundle), action, options.seed)
        arena = Arena(place, load)
        in_order = False
        try:
            turns = _measure(arena, place, bundle, size, options.beside, say)
            in_order = True
        finally:
            arena.close(in_order)
    return _result(turns, size, bundle, options.seed)


Turns = dict[str, dict[str, list[Turn]]]  # phase -> contender -> one a repeat


def _measure(
    arena: Arena, place: Place, bundle: Path, size: Size, beside: Path | None, say: Callable[[str], None]
) -> Turns:
    say(f"filling the histories of {size.users:,} users")
    arena.fill(size.fill_each)
    say("starting the worker, which folds them")
    entrants = [arena.enter(worker(place, bundle))]
    list_bytes = _list_bytes(arena.backlog(size.warm_up, entrants))
    entrants.append(arena.enter(echo(place, list_bytes)))
    if beside is not None:
        entrants.append(arena.enter(worker(place, bundle, "beside", beside)))
    arena.backlog(size.warm_up, entrants)
    turns: Turns = {phase: {entrant.contender.name: [] for entrant in entrants} for phase in ("backlog", "paced")}
    for repeat in range(size.repeats):
        say(f"repeat {repeat + 1} of {size.repeats}")
        order: Sequence[Entrant] = entrants if repeat % 2 == 0 else entrants[::-1]
        for name, turn in arena.backlog(size.backlog, order).items():
            turns["backlog"][name].append(turn)
        for name, turn in arena.paced(size.rate, size.paced_s, size.paced_warm_up_s, order).items():
            turns["paced"][name].append(turn)
    return turns


def _list_bytes(turns: dict[str, Turn]) -> int:
    (turn,) = turns.values()
    return round(turn.list_bytes / turn.lists)


def _items(bundle: Path) -> list[str]:
    decode = msgspec.json.Decoder(ItemRow).decode
    return [decode(line).item for line in (bundle / ITEM_ROWS).read_bytes().splitlines()]


def _result(turns: Turns, size: Size, bundle: Path, seed: int) -> dict[str, Any]:
    manifest = read_manifest(bundle)
    backlog = {name: figures.backlog(each) for name, each in turns["backlog"].items()}
    paced = {name: figures.paced(each) for name, each in turns["paced"].items()}
    bars = {
        "throughput_vs_echo": figures.ratio(backlog, "events_per_s", "worker", "echo", at_least=THROUGHPUT_BAR),
        "p99_vs_echo": figures.ratio(paced, "p99_ms", "worker", "echo", at_most=P99_BAR),
    }
    if "beside" in backlog:
        bars["throughput_vs_beside"] = figures.ratio(backlog, "events_per_s", "worker", "beside")
        bars["cpu_vs_beside"] = figures.ratio(backlog, "cpu_us_per_event", "worker", "beside")
        bars["p99_vs_beside"] = figures.ratio(paced, "p99_ms", "worker", "beside")
        bars["paced_cpu_vs_beside"] = figures.ratio(paced, "cpu_us_per_event", "worker", "beside")
    return {
        "seed": seed,
        "load": asdict(size) | {"zipf": ZIPF},
        "bundle": {"model": manifest.model, "items": manifest.items, "L": manifest.L, "K": manifest.K},
        "backlog": backlog,
        "paced": paced,
        "stages_us_per_event": {
            name: figures.stages(each) for name, each in turns["backlog"].items() if each[0].stages_s
        },
        "bars": bars,
    }


def table(result: Mapping[str, Any]) -> list[str]:
    """The result for people."""
    load, bundle = result["load"], result["bundle"]
    lines = [
        f"bundle {bundle['model']}: {bundle['items']} items, L {bundle['L']}, K {bundle['K']}",
        f"load   {load['users']:,} users, Zipf {load['zipf']}, histories of {load['fill_each']} or more, "
        f"seed {result['seed']}, {load['repeats']} repeats in turns, medians",
        "",
        f"backlog of {load['backlog']:,} events, drained at full speed, one partition",
        *figures.rows(result["backlog"]),
        "",
        f"paced at {load['rate']:g} events/s for {load['paced_s']:g} s, event-to-list by the broker's clock",
        *figures.rows(result["paced"]),
        "",
    ]
    for name, stages in result["stages_us_per_event"].items():
        lines += [f"backlog by stage, {name}, us of wall time per event", *figures.rows({"": stages}), ""]
    return [*lines, "ratios: median (least to most) of the pairs of one repeat", *figures.verdicts(result["bars"])]
