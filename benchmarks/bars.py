"""The bars in one run: every benchmark that has one but checkpoints, catch-up and soak, and their ratios together."""

from argparse import Namespace
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from kafka.errors import KafkaError

from benchmarks import beside_echo, bundles, figures, graphs, host, idle, incremental, restore, scaling, topk, users
from benchmarks.peers import contest
from stream_worker.errors import StreamWorkerError

PARTS: dict[str, ModuleType] = {
    "echo": beside_echo,
    "peers": contest,
    "graphs": graphs,
    "host": host,
    "incremental": incremental,
    "topk": topk,
    "idle": idle,
    "scaling": scaling,
    "users": users,
    "restore": restore,
}
KEPT_VECTOR = "gru4rec"  # the model of the bar on memory: a vector of 64 floats a user


def run(options: Any, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure; returns the result as it is written to JSON.

    Args:
        options: the flags of benchmarks/run.py, for all of them.
        say: takes a line on how far it is.
    """
    results: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for name, part in PARTS.items():
        say(f"== {name}")
        its_own: dict[str, Any] = {"users": None} if options.smoke else {}
        if name == "restore" and not options.smoke:
            its_own["bundle"] = bundles.synthetic(name=KEPT_VECTOR)
        try:
            results[name] = part.run(Namespace(**vars(options) | its_own), say)
        except (StreamWorkerError, KafkaError) as error:  # the others take an hour: they are not lost with it
            failed[name] = str(error)
            say(f"{name} failed: {error}")
    return {
        "seed": options.seed,
        "parts": results,
        "failed": failed,
        "bars": {key: bar for result in results.values() for key, bar in result["bars"].items()},
    }


def table(result: Mapping[str, Any]) -> list[str]:
    """The result for people."""
    lines = []
    for name, part in result["parts"].items():
        lines += [f"== {name}", *PARTS[name].table(part), ""]
    lines += [f"== {name} FAILED: {message}" for name, message in result["failed"].items()]
    return [*lines, "== all", *figures.verdicts(result["bars"])]
