"""Two partitions on one worker, and on two: lists per CPU second, by the same events, in turns.

Two cores can show what more workers cost, not how much faster they are.
"""

import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks import bundles, figures
from benchmarks.contenders import (
    BUSY_TIMEOUT_S,
    EVENTS,
    REJECTED,
    SESSION_TIMEOUT_S,
    SETTLE_S,
    START_TIMEOUT_S,
    WorkerContender,
    place,
    worker,
)
from benchmarks.errors import BenchmarkError
from benchmarks.load import Load, Producer
from benchmarks.topics import COMPACTED, Admin
from stream_worker.manifest import read_manifest
from stream_worker.metrics import PREFIX

BAR = 0.95
QUIET_S = 2.0  # without a new list: above the time between checkpoints, and between two looks of a worker at itself
PARTITIONS = 2
TICK_S = 0.01  # of the CPU clock
TEAMS = {"two": 2, "one": 1}


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    users: int = 20_000
    warm_up: int = 100_000  # fills histories
    backlog: int = 60_000
    repeats: int = 3
    # A team of two is complete after a fourth of it, and a team that stood still for half of it may publish nothing.
    session_timeout_s: float = SESSION_TIMEOUT_S


SMOKE = Size(users=200, warm_up=400, backlog=400, repeats=1, session_timeout_s=60)


def run(options: Any, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure; returns the result as it is written to JSON.

    Args:
        options: the flags of benchmarks/run.py.
        say: takes a line on how far it is.
    """
    size = SMOKE if options.smoke else Size()
    size = replace(size, repeats=options.repeats or size.repeats)
    bundle = bundles.choose(options.bundle, options.smoke)
    load = Load(size.users, bundles.items(bundle), {next(iter(read_manifest(bundle).actions)): 1}, options.seed)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in TEAMS}
    with place(options.bootstrap) as here:
        admin = Admin(here.bootstrap)
        admin.create([here.topic(EVENTS), here.topic(REJECTED)], partitions=PARTITIONS)
        producer = Producer(here.bootstrap, here.topic(EVENTS), partition=None)
        teams: dict[str, list[WorkerContender]] = {}
        totals: dict[str, dict[str, float]] = {}  # at the end of a team's last turn: one that stands still does not say
        try:
            for name, count in TEAMS.items():
                admin.create([here.topic(name)])
                admin.create([here.topic(f"{name}-state")], COMPACTED, partitions=PARTITIONS)
                team = [
                    worker(
                        here, bundle, f"{name}-{number}", state=f"{name}-state",
                        flags=[
                            "--group", here.topic(name), "--recommendations-topic", here.topic(name),
                            "--session-timeout-s", str(size.session_timeout_s),
                        ],
                    )
                    for number in range(count)
                ]  # fmt: skip
                teams[name] = team
                for one in team:
                    one.start()
                _await_partitions(team)
                totals[name] = _totals(team)
                for one in team:
                    one.pause()
            for turn in range(size.repeats + 1):  # the first fills histories
                say(f"turn {turn} of {size.repeats}")
                count = size.backlog if turn else size.warm_up
                producer.produce(load.draw(count))
                for name, team in list(teams.items())[:: 1 if turn % 2 else -1]:
                    figure, totals[name] = _drain(team, count, totals[name])
                    if turn:
                        found[name].append(figure)
            for team in teams.values():
                for one in team:
                    one.stop()
        finally:
            for team in teams.values():
                for one in team:
                    one.kill()
            producer.close()
            admin.close()
    each = {name: figures.medians(one) for name, one in found.items()}
    return {
        "seed": options.seed,
        "load": asdict(size),
        "bundle": bundles.describe(bundle),
        "workers": each,
        "bars": {"two_workers": figures.ratio(each, "lists_per_cpu_s", "two", "one", at_least=BAR)},
    }


def _await_partitions(team: Sequence[WorkerContender]) -> None:
    """Until each has as many as the others."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while any(_partitions(one) * len(team) != PARTITIONS for one in team):
        if time.monotonic() > deadline:
            raise BenchmarkError(f"{[_partitions(one) for one in team]} partitions are not shared evenly")
        time.sleep(SETTLE_S)


def _partitions(one: WorkerContender) -> int:
    with urllib.request.urlopen(f"{one.url}/metrics", timeout=5) as answer:  # noqa: S310
        return sum(line.startswith(f"{PREFIX}_users{{") for line in answer.read().decode().splitlines())


def _drain(
    team: Sequence[WorkerContender], count: int, before: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    """Let them run until all events are folded and all lists acknowledged. Returns figures and totals."""
    start, cpu_s = time.monotonic(), sum(one.cpu_s() for one in team)
    for one in team:
        one.resume()
    deadline, lists, ended, used_s = start + BUSY_TIMEOUT_S, before["lists_total"], start, TICK_S
    while True:
        now = _totals(team)
        if now["lists_total"] > lists:  # that was not the last one
            lists, ended = now["lists_total"], time.monotonic()
            used_s = max(TICK_S, sum(one.cpu_s() for one in team) - cpu_s)
        done = now["events_total"] - before["events_total"] >= count and not now["pending_users"]
        if done and time.monotonic() - ended > QUIET_S:
            break
        if time.monotonic() > deadline:
            raise BenchmarkError(f"not done after {BUSY_TIMEOUT_S} s: {now}")
        time.sleep(SETTLE_S)
    for one in team:
        one.pause()
    made, seconds = lists - before["lists_total"], ended - start
    return {"lists_per_cpu_s": made / used_s, "lists_per_s": made / seconds, "events_per_s": count / seconds}, now


def _totals(team: Sequence[WorkerContender]) -> dict[str, float]:
    each = [one.totals() for one in team]
    return {name: sum(one[name] for one in each) for name in ("events_total", "lists_total", "pending_users")}


def table(result: Mapping[str, Any]) -> list[str]:
    """The result for people."""
    load = result["load"]
    return [
        f"{PARTITIONS} partitions, {load['users']:,} users, Zipf, backlogs of {load['backlog']:,} events, "
        f"{load['repeats']} repeats in turns, medians",
        *figures.rows(result["workers"]),
        "",
        *figures.verdicts(result["bars"]),
    ]
