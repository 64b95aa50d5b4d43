"""A catch-up: a real worker that comes back to a backlog of old events, beside a bare consumer of the same partition.

Two figures: how fast the backlog is folded, and when each of its users has a list. The bare consumer (reader.py) polls
the events with the worker's client settings, and does no more. They take turns.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from benchmarks import bundles, figures
from benchmarks.contenders import EVENTS, REJECTED, ROOT, Place, WorkerContender, place, worker
from benchmarks.errors import BenchmarkError
from benchmarks.load import Load, Producer
from benchmarks.topics import COMPACTED, Admin

RECORDS_BAR = 0.3
ACTIONS = {"view": 0.8, "click": 0.17, "purchase": 0.03}
STALE_AFTER_S = 1.0  # a backlog does not have to wait ten seconds to be old
TIMEOUT_S = 600
LOOK_EVERY_S = 0.05


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    users: int = 20_000
    events: int = 500_000
    repeats: int = 3


SMOKE = Size(users=500, events=8000, repeats=1)


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
    with place(options.bootstrap) as here:
        admin = Admin(here.bootstrap)
        topics = [here.topic(EVENTS), here.topic(REJECTED)]
        admin.create(topics)
        say(f"producing {size.events:,} events")
        messages = load.draw(size.events)
        producer = Producer(here.bootstrap, here.topic(EVENTS))
        producer.produce(messages)
        producer.close()
        touched = len({key for key, _ in messages})
        old_at = time.monotonic() + STALE_AFTER_S
        turns: dict[str, list[dict[str, float]]] = {"worker": [], "reader": []}
        for repeat in range(size.repeats):
            say(f"repeat {repeat + 1} of {size.repeats}")
            name = f"worker-{repeat}"
            admin.create([here.topic(name)])
            admin.create([here.topic(f"{name}-state")], COMPACTED)
            topics += [here.topic(name), here.topic(f"{name}-state")]
            time.sleep(max(0.0, old_at - time.monotonic()))
            flags = ["--first-start", "earliest", "--stale-after-s", str(STALE_AFTER_S)]
            contender = worker(here, bundle, name, flags=flags)
            turns["worker"].append(_catch_up(contender, size.events, touched))
            read = _read(here)
            turns["reader"].append({"records_per_s": read["records"] / read["seconds"]} | read)
        admin.delete(topics)
        admin.close()
    found = {name: figures.medians(each) for name, each in turns.items()}
    return {
        "seed": options.seed,
        "load": asdict(size) | {"touched": touched},
        **found,
        "bars": {"records_vs_reader": figures.ratio(found, "records_per_s", "worker", "reader", at_least=RECORDS_BAR)},
    }


def _catch_up(contender: WorkerContender, events: int, touched: int) -> dict[str, float]:
    """Start it, and watch it fold all events and then list all users.

    Raises:
        BenchmarkError: it took too long, such as when a user gets no list.
    """
    try:
        contender.start()
        start, before_s = restored_at(contender), contender.cpu_s()
        folded_s = _wait(contender, start, lambda totals: totals["events_total"] >= events)
        at_fold, folded_cpu_s = contender.totals(), contender.cpu_s() - before_s
        listed_s = _wait(  # to a second: that is how often the worker counts who waits
            contender, start, lambda totals: totals["lists_total"] >= touched and totals["pending_users"] == 0
        )
        after = contender.totals()
        return {
            "records_per_s": events / folded_s,
            "cpu_us_per_record": folded_cpu_s / events * 1e6,
            "folded_s": folded_s,
            "listed_s": listed_s,
            "lists_while_folding": at_fold["lists_total"],
            "lists_per_user": after["lists_total"] / touched,
            "mean_checkpoint_s": after["checkpoint_seconds_sum"] / max(1.0, after["checkpoint_seconds_count"]),
            "rss_mib": contender.rss_mib(),
        }
    finally:
        contender.kill()


def restored_at(contender: WorkerContender) -> float:
    """When it began with the events, Unix time, as its log says."""
    lines = map(json.loads, contender.log.read_text().splitlines())
    restored = next(line for line in lines if line["event"] == "restored")
    return datetime.fromisoformat(restored["timestamp"]).timestamp()


def _wait(contender: WorkerContender, start: float, done: Callable[[Mapping[str, float]], bool]) -> float:
    while not done(contender.totals()):
        contender.check()
        if time.time() > start + TIMEOUT_S:
            raise BenchmarkError(f"not caught up after {TIMEOUT_S} s: {contender.totals()}")
        time.sleep(LOOK_EVERY_S)
    return time.time() - start


def _read(here: Place) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.reader"]
    command += ["--bootstrap", here.bootstrap, "--events-topic", here.topic(EVENTS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=TIMEOUT_S)
    if done.returncode:
        raise BenchmarkError(f"the reader ended with exit code {done.returncode}\n{done.stderr.decode()}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def table(result: Mapping[str, Any]) -> list[str]:
    """The result for people."""
    load = result["load"]
    return [
        f"load   {load['events']:,} events of {load['touched']:,} users, Zipf, one partition, older than "
        f"{STALE_AFTER_S:g} s, seed {result['seed']}, {load['repeats']} repeats in turns, medians",
        "",
        *figures.rows({"worker": result["worker"]}),
        "",
        *figures.rows({"reader": result["reader"]}),
        "",
        "ratios: median (least to most) of the pairs of one repeat",
        *figures.verdicts(result["bars"]),
    ]
