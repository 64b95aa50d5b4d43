"""`python -m benchmarks.run [NAME] [--smoke] [--json FILE]`: runs a benchmark and prints its table.

Exit code 0 whether or not a bar is met; another one if something is broken, such as a list that is missing.
"""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from kafka.errors import KafkaError

from benchmarks import (
    bars,
    beside_echo,
    catch_up,
    checkpoints,
    gpu,
    graphs,
    host,
    idle,
    incremental,
    machine,
    restore,
    scaling,
    soak,
    topk,
    users,
)
from benchmarks.peers import contest
from stream_worker.errors import StreamWorkerError


class Benchmark(NamedTuple):
    """What a name stands for."""

    run: Callable[[argparse.Namespace, Callable[[str], None]], dict[str, Any]]
    table: Callable[[Mapping[str, Any]], list[str]]


BENCHMARKS = {
    "echo": Benchmark(beside_echo.run, beside_echo.table),
    "checkpoints": Benchmark(checkpoints.run, checkpoints.table),
    "catch-up": Benchmark(catch_up.run, catch_up.table),
    "gpu": Benchmark(gpu.run, gpu.table),
    "graphs": Benchmark(graphs.run, graphs.table),
    "host": Benchmark(host.run, host.table),
    "idle": Benchmark(idle.run, idle.table),
    "incremental": Benchmark(incremental.run, incremental.table),
    "peers": Benchmark(contest.run, contest.table),
    "restore": Benchmark(restore.run, restore.table),
    "scaling": Benchmark(scaling.run, scaling.table),
    "soak": Benchmark(soak.run, soak.table),
    "topk": Benchmark(topk.run, topk.table),
    "users": Benchmark(users.run, users.table),
    "bars": Benchmark(bars.run, bars.table),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as for Ctrl-C
    benchmark = BENCHMARKS[options.name]
    head = {
        "benchmark": options.name,
        "command": " ".join(["python -m benchmarks.run", *_telling(arguments)]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "smoke": options.smoke,
        "machine": machine.describe(),
    }
    try:
        result = head | benchmark.run(options, lambda line: print(f".. {line}", file=sys.stderr, flush=True))
    except KeyboardInterrupt:
        print("benchmarks: interrupted", file=sys.stderr)
        return 130
    except (StreamWorkerError, KafkaError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    print("\n".join([*_head(result), *benchmark.table(result)]))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if result.get("failed") else 0


def _telling(arguments: Sequence[str]) -> list[str]:
    """Without where the result is written: that says nothing to whoever reads it."""
    told = list(arguments)
    if "--json" in told:
        del told[(at := told.index("--json")) : at + 2]
    return told


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("name", nargs="?", default="bars", choices=BENCHMARKS, help="which benchmark (bars)")
    parser.add_argument("--smoke", action="store_true", help="seconds instead of minutes; the figures mean nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there as one object")
    parser.add_argument("--repeats", type=int, help="turns of each contender (3)")
    parser.add_argument("--seed", type=int, default=0, help="of the load (0)")
    parser.add_argument(
        "--users",
        type=int,
        help="restore (1,000,000), users (5,000,000), catch-up (20,000), peers and host (200,000 or 20,000)",
    )
    parser.add_argument("--events", type=int, help="peers: of a backlog (uniform 20,000, zipf 30,000); host (20,000)")
    parser.add_argument("--rates", metavar="N,N", help="echo: events/s, by comma (500,1000)")
    parser.add_argument("--loads", metavar="NAMES", help="peers: which, by comma (uniform,zipf,streaming)")
    parser.add_argument("--only", metavar="NAMES", help="peers: which contenders beside our worker, by comma (all)")
    parser.add_argument("--bundle", type=Path, help="what is served (.demo/models, else a synthetic one)")
    parser.add_argument("--bootstrap", metavar="HOST:PORT", help="a broker that runs (starts one of its own)")
    parser.add_argument("--both-clients", action="store_true", help="echo: also worker and echo through librdkafka")
    parser.add_argument(
        "--beside", type=Path, metavar="CHECKOUT", help="echo, restore: also the worker of this checkout"
    )
    return parser


def _head(result: Mapping[str, Any]) -> list[str]:
    on = result["machine"]
    libraries = ", ".join(f"{name} {version}" for name, version in on["libraries"].items())
    lines = [
        f"{result['command']}  ({result['date']})",
        f"machine {on['cpu']}, {on['cores']} cores, {on['memory_gib']} GiB, load {on['load_average']} before the run",
        f"python {on['python']}, {libraries}",
    ]
    return [*lines, "SMOKE RUN: the figures mean nothing"] if result["smoke"] else lines


if __name__ == "__main__":
    sys.exit(main())
