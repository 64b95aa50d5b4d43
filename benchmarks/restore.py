"""A restore: a real worker that starts on the states of many users, beside a bare consumer of the same partition.

The worker's time is its own, from the assignment of the partition to its state being complete; the bare consumer's
(reader.py) begins when it is made. They take turns. CPU and memory are beyond those of a worker without users.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import bundles, figures, states
from benchmarks.contenders import EVENTS, REJECTED, ROOT, Contender, Place, place, worker
from benchmarks.errors import BenchmarkError
from benchmarks.load import Load
from benchmarks.topics import COMPACTED, Admin

RECORDS_BAR = 0.6
BYTES_BAR = 1600  # a user, of a model that keeps a vector of 64 floats
ACTIONS = {"view": 0.8, "click": 0.17, "purchase": 0.03}
READ_TIMEOUT_S = 300
STATE, NO_STATE = "state", "no-state"


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    users: int = 1_000_000
    mean_history: int = 14
    repeats: int = 3


SMOKE = Size(users=3000, repeats=1)


def run(options: Any, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure; returns the result as it is written to JSON.

    Args:
        options: the flags of benchmarks/run.py.
        say: takes a line on how far it is.
    """
    size = SMOKE if options.smoke else Size()
    size = replace(size, repeats=options.repeats or size.repeats, users=options.users or size.users)
    bundle = bundles.choose(options.bundle, options.smoke)
    load = Load(size.users, bundles.items(bundle), ACTIONS, options.seed)
    length_B = np.random.default_rng(options.seed).geometric(1 / size.mean_history, size.users).astype(np.int32)
    length_B = np.minimum(length_B, states.HISTORY_LENGTH)
    with place(options.bootstrap) as here:
        admin = Admin(here.bootstrap)
        topics = [here.topic(EVENTS), here.topic(REJECTED)]
        state_topics = [here.topic(STATE), here.topic(NO_STATE)]
        admin.create(topics)
        admin.create(state_topics, COMPACTED)
        say(f"writing the states of {size.users:,} users")
        topic_id = admin.topic_id(here.topic(EVENTS))
        states.write(here.bootstrap, here.topic(STATE), load.states(length_B), load.actions, topic_id, next_offset=0)

        def turn(name: str, state: str, code: Path = ROOT) -> dict[str, float]:
            topics.append(here.topic(name))
            admin.create([here.topic(name)])
            return _restore(worker(here, bundle, name, code, state=state))

        codes = {"worker": ROOT} | ({"beside": options.beside} if options.beside else {})
        empty = turn("empty", NO_STATE)
        turns: dict[str, list[dict[str, float]]] = {name: [] for name in (*codes, "reader")}
        for repeat in range(size.repeats):
            say(f"repeat {repeat + 1} of {size.repeats}")
            for name, code in codes.items():
                turns[name].append(_beyond(empty, turn(f"{name}-{repeat}", STATE, code), size.users))
            turns["reader"].append(_read(here))
        admin.delete([*topics, *state_topics])
        admin.close()
    found_figures = {name: figures.medians(each) for name, each in turns.items()}
    return {
        "seed": options.seed,
        "load": asdict(size) | {"mean_history": float(length_B.mean())},
        "empty_worker_rss_mib": empty["rss_mib"],
        **found_figures,
        "bars": {
            "records_vs_reader": figures.ratio(
                found_figures, "records_per_s", "worker", "reader", at_least=RECORDS_BAR
            ),
            "bytes_per_user": figures.bar(found_figures["worker"]["repeats"]["rss_bytes_per_user"], at_most=BYTES_BAR),
            "cpu_vs_reader": figures.ratio(found_figures, "cpu_us_per_record", "worker", "reader"),
        }
        | {
            f"{name}_vs_beside": figures.ratio(found_figures, figure, "worker", "beside")
            for name, figure in (("records", "records_per_s"), ("cpu", "cpu_us_per_record"))
            if "beside" in codes
        },
    }


def _restore(contender: Contender) -> dict[str, float]:
    """Start it, and end it once it is ready; what it says of its restore, and its memory."""
    try:
        contender.start()
        lines = map(json.loads, contender.log.read_text().splitlines())
        restored = next(line for line in lines if line["event"] == "restored")
        return {
            "seconds": restored["seconds"],
            "users": restored["users"],
            "cpu_s": contender.cpu_s(),
            "rss_mib": contender.rss_mib(),
            "peak_rss_mib": contender.peak_rss_mib(),
        }
    finally:
        contender.kill()


def _beyond(empty: Mapping[str, float], found: Mapping[str, float], users: int) -> dict[str, float]:
    """The figures of a restore of so many users, beside that of none."""
    if found["users"] != users:
        raise BenchmarkError(f"{found['users']:,.0f} users were restored of {users:,}")
    return {
        "records_per_s": users / found["seconds"],
        "seconds": found["seconds"],
        "cpu_us_per_record": (found["cpu_s"] - empty["cpu_s"]) / users * 1e6,
        "rss_bytes_per_user": (found["rss_mib"] - empty["rss_mib"]) * 2**20 / users,
        "rss_mib": found["rss_mib"],
        "peak_rss_mib": found["peak_rss_mib"],
    }


def _read(here: Place) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.reader"]
    command += ["--bootstrap", here.bootstrap, "--state-topic", here.topic(STATE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=READ_TIMEOUT_S)
    if done.returncode:
        raise BenchmarkError(f"the reader ended with exit code {done.returncode}\n{done.stderr.decode()}")
    found = json.loads(done.stdout)
    return {
        "records_per_s": found["records"] / found["seconds"],
        "seconds": found["seconds"],
        "cpu_us_per_record": found["cpu_s"] / found["records"] * 1e6,
    }


def table(result: Mapping[str, Any]) -> list[str]:
    """The result for people."""
    load = result["load"]
    return [
        f"load   {load['users']:,} users, histories of {load['mean_history']:.1f} events (mean), "
        f"seed {result['seed']}, {load['repeats']} repeats in turns, medians",
        f"memory of a worker without users: {result['empty_worker_rss_mib']:.0f} MiB",
        "",
        *figures.rows({name: result[name] for name in ("worker", "beside") if name in result}),
        "",
        *figures.rows({"reader": result["reader"]}),
        "",
        "ratios: median (least to most) of the pairs of one repeat",
        *figures.verdicts(result["bars"]),
    ]
