"""One worker beside an echo of the same client, on the same events, in turns.

Throughput and CPU: events that were produced while all stood still are drained at full speed. Latency: events come
one by one at a steady rate; a sample is the time from the oldest event that a list is the first to cover to that
list, both by the broker's clock (LogAppendTime of both topics), so that nothing of the measuring is in it.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks import bundles, figures
from benchmarks.arena import Arena, Size, Turn, Turns
from benchmarks.contenders import CLIENTS, echo, place, worker
from benchmarks.load import ZIPF, Load
from stream_worker.manifest import read_manifest

SECOND = "-rdk"  # what runs through librdkafka
THROUGHPUT_BAR, P99_BAR, CPU_BAR = 0.35, 1.5, 1.3
CPU_AT, P99_AT = 500.0, 1000.0  # events/s
SMOKE = Size(
    users=200, fill_each=3, warm_up=300, backlog=1500, rates=(100,), paced_s=1, paced_warm_up_s=0.2, repeats=1,
    checkpoint_interval_s=0.2,
)  # fmt: skip


def run(options: Any, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure; returns the result as it is written to JSON.

    Args:
        options: the flags of benchmarks/run.py.
        say: takes a line on how far it is.
    """
    size = SMOKE if options.smoke else Size(rates=(CPU_AT, P99_AT))
    rates = tuple(float(rate) for rate in options.rates.split(",")) if options.rates else size.rates
    size = replace(size, repeats=options.repeats or size.repeats, rates=rates)
    bundle = bundles.choose(options.bundle, options.smoke)
    action = next(iter(read_manifest(bundle).actions))
    load = Load(size.users, bundles.items(bundle), {action: 1}, options.seed)
    with place(options.bootstrap) as here, Arena(here, load) as arena:
        workers = [worker(here, bundle, checkpoint_interval_s=size.checkpoint_interval_s)]
        if options.beside is not None:
            workers.append(worker(here, bundle, "beside", options.beside))
        if options.both_clients:
            workers.append(
                worker(
                    here, bundle, f"worker{SECOND}", checkpoint_interval_s=size.checkpoint_interval_s,
                    flags=["--client", CLIENTS[1]],
                )
            )  # fmt: skip
        say(f"making the histories of {size.users:,} users")
        arena.fill(size.users, size.fill_each, as_events=any(one.state_topic is None for one in workers))
        say("starting the worker")
        entrants = [arena.enter(one) for one in workers]
        list_bytes = _list_bytes(arena.backlog(size.warm_up, entrants[:1]))
        entrants.insert(1, arena.enter(echo(here, list_bytes)))
        if options.both_clients:
            entrants.append(arena.enter(echo(here, list_bytes, f"echo{SECOND}", CLIENTS[1])))
        turns = arena.compete(entrants, size, say)
    return _result(turns, size, bundle, options.seed)


def _list_bytes(turns: dict[str, Turn]) -> int:
    (turn,) = turns.values()
    return round(turn.list_bytes / turn.lists)


def _result(turns: Turns, size: Size, bundle: Path, seed: int) -> dict[str, Any]:
    backlog = {name: figures.backlog(each) for name, each in turns["backlog"].items()}
    all_paced = figures.all_paced(turns, size.rates)
    # The bars' own rates, where they were among those measured.
    slow, paced = (all_paced.get(f"{rate:g}", all_paced[f"{size.rates[0]:g}"]) for rate in (CPU_AT, P99_AT))
    bars = {
        "throughput_vs_echo": figures.ratio(backlog, "events_per_s", "worker", "echo", at_least=THROUGHPUT_BAR),
        "p99_vs_echo": figures.ratio(paced, "p99_ms", "worker", "echo", at_most=P99_BAR),
        "idle_cpu_vs_echo": figures.ratio(slow, "cpu_us_per_event", "worker", "echo", at_most=CPU_BAR),
    }
    if f"worker{SECOND}" in backlog:
        ours, its = f"worker{SECOND}", f"echo{SECOND}"
        bars["throughput_vs_echo_librdkafka"] = figures.ratio(backlog, "events_per_s", ours, its)
        bars["p99_vs_echo_librdkafka"] = figures.ratio(paced, "p99_ms", ours, its)
        bars["throughput_of_clients"] = figures.ratio(backlog, "events_per_s", ours, "worker")
        bars["p99_of_clients"] = figures.ratio(paced, "p99_ms", ours, "worker")
        bars["paced_cpu_of_clients"] = figures.ratio(slow, "cpu_us_per_event", ours, "worker")
    if "beside" in backlog:
        bars["throughput_vs_beside"] = figures.ratio(backlog, "events_per_s", "worker", "beside")
        bars["cpu_vs_beside"] = figures.ratio(backlog, "cpu_us_per_event", "worker", "beside")
        bars["p99_vs_beside"] = figures.ratio(paced, "p99_ms", "worker", "beside")
        bars["paced_cpu_vs_beside"] = figures.ratio(slow, "cpu_us_per_event", "worker", "beside")
    return {
        "seed": seed,
        "load": asdict(size) | {"zipf": ZIPF},
        "bundle": bundles.describe(bundle),
        "backlog": backlog,
        "paced": all_paced,
        "stages_us_per_event": {
            name: figures.stages(each) for name, each in turns["backlog"].items() if each[0].stages_s
        },
        "bars": bars,
    }


def table(result: Mapping[str, Any]) -> list[str]:
    """The result for people."""
    lines = [*figures.setting(result), "", *figures.backlog_and_paced(result)]
    for name, stages in result["stages_us_per_event"].items():
        lines += [f"backlog by stage, {name}, us of wall time per event", *figures.rows({"": stages}), ""]
    return [*lines, "ratios: median (least to most) of the pairs of one repeat", *figures.verdicts(result["bars"])]
