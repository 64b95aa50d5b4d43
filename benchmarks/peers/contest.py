"""Peers: our worker on both clients beside what else one might have written, on the same events, in turns.

Three loads. *uniform*: users drawn evenly from many, so that hardly anything coalesces and everybody makes a list per
event; compared is CPU per list. *zipf*: fewer users by Zipf's law; compared are events per second. Before anything is
measured all contenders must have the same lists for a sample of users, and again at the end. *streaming*: as uniform,
our worker with the model that keeps keys and values, which no peer could serve, beside Quix Streams with SASRec; every
user has one event before, so that all have their keys and values.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import bundles, figures
from benchmarks.arena import Arena, Entrant, Turn
from benchmarks.contenders import CLIENTS, EVENTS, SESSION_TIMEOUT_S, Contender, Place, echo, place, worker
from benchmarks.errors import BenchmarkError
from benchmarks.load import ZIPF, Load
from benchmarks.peers import agreement, environment
from stream_worker.manifest import read_manifest

WORKER, WORKER_RDK, ECHO = "worker", "worker-rdk", "echo"
STREAMING, STREAMING_RDK = "streaming", "streaming-rdk"
OURS = {WORKER: CLIENTS[0], WORKER_RDK: CLIENTS[1], STREAMING: CLIENTS[0], STREAMING_RDK: CLIENTS[1]}
PEERS = ("plain", "quix", "bytewax")
CONTENDERS = (WORKER, WORKER_RDK, ECHO, *PEERS)
STREAMING_MODEL, STREAMING_CONTENDERS = "streaming-transformer", (STREAMING, STREAMING_RDK, "quix")
QUIX_COMMIT_INTERVAL_S = 5.0  # its default; a turn ends between two of them, as with our checkpoints
FED = {"history_items", "history_times", "excluded_items"}  # what the peers know to feed
SAMPLE = 200  # users whose lists are compared
CPU, EVENTS_PER_S = "cpu_us_per_list", "events_per_s"


@dataclass(frozen=True)
class Size:
    """How much of a load."""

    users: int
    users_zipf: float
    backlog: int
    warm_up: int
    fill_each: int = 50
    repeats: int = 3
    quix_silent_s: float = QUIX_COMMIT_INTERVAL_S
    streaming: bool = False


class Bar(NamedTuple):
    """A ratio `ours / theirs` of a figure in the backlog of a load, and what it should be."""

    load: str
    figure: str
    ours: str
    theirs: str
    at_least: float | None


# A round of all contenders takes less than half a session timeout, on a slow machine, too.
SIZES = {
    "uniform": Size(users=200_000, users_zipf=0.0, backlog=20_000, warm_up=5_000),
    "zipf": Size(users=20_000, users_zipf=ZIPF, backlog=30_000, warm_up=10_000),
    "streaming": Size(users=50_000, users_zipf=0.0, backlog=20_000, warm_up=50_000, streaming=True),
}
SMOKE = {
    "uniform": Size(users=300, users_zipf=0.0, backlog=200, warm_up=100, fill_each=10, repeats=1, quix_silent_s=0),
    "zipf": Size(users=100, users_zipf=ZIPF, backlog=300, warm_up=100, fill_each=10, repeats=1, quix_silent_s=0),
    "streaming": Size(
        users=100, users_zipf=0.0, backlog=100, warm_up=100, fill_each=10, repeats=1, quix_silent_s=0, streaming=True
    ),
}
BARS = {
    "quix_uniform": Bar("uniform", CPU, "quix", WORKER, 2.3),
    "quix_uniform_librdkafka": Bar("uniform", CPU, "quix", WORKER_RDK, 3),
    "bytewax_uniform": Bar("uniform", CPU, "bytewax", WORKER, 1.3),
    "bytewax_uniform_librdkafka": Bar("uniform", CPU, "bytewax", WORKER_RDK, None),
    "quix_zipf": Bar("zipf", EVENTS_PER_S, WORKER, "quix", 5),
    "quix_zipf_librdkafka": Bar("zipf", EVENTS_PER_S, WORKER_RDK, "quix", 7),
    "bytewax_zipf": Bar("zipf", EVENTS_PER_S, WORKER, "bytewax", 1.3),
    "bytewax_zipf_librdkafka": Bar("zipf", EVENTS_PER_S, WORKER_RDK, "bytewax", 1.8),
    "plain_zipf": Bar("zipf", EVENTS_PER_S, WORKER, "plain", 5),
    "echo_zipf": Bar("zipf", EVENTS_PER_S, WORKER, ECHO, 0.42),
    "streaming_uniform": Bar("streaming", CPU, "quix", STREAMING, 4),
    "streaming_uniform_librdkafka": Bar("streaming", CPU, "quix", STREAMING_RDK, 6),
}


def run(options: Any, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure; returns the result as it is written to JSON.

    Args:
        options: the flags of benchmarks/run.py.
        say: takes a line on how far it is.
    """
    if not environment.is_there():
        say("making the peers' environment (once; it downloads)")
    python = environment.python()
    bundle = _bundle(options)
    sizes = SMOKE if options.smoke else SIZES
    loads, agreed = {}, 0
    for name in options.loads.split(",") if options.loads else sizes:
        if name not in sizes:
            raise BenchmarkError(f"--loads {name}: there are {', '.join(sizes)}")
        size = sizes[name]
        size = replace(
            size, users=options.users or size.users, backlog=options.events or size.backlog,
            repeats=options.repeats or size.repeats,
        )  # fmt: skip
        first, *others = STREAMING_CONTENDERS if size.streaming else CONTENDERS
        names = [first, *(one for one in others if not options.only or one in options.only.split(","))]
        with place(options.bootstrap) as here:
            say(f"{name}: the load")
            turns, same = _compete(here, python, bundle, size, names, options.seed, say)
        agreed += same
        loads[name] = {
            "load": asdict(size),
            "backlog": {one: figures.backlog(each) for one, each in turns.items()},
            "stages_us_per_event": {one: figures.stages(each) for one, each in turns.items() if each[0].stages_s},
        }
    return {
        "seed": options.seed,
        "bundle": bundles.describe(bundle),
        "loads": loads,
        "lists_that_agreed": agreed,
        "bars": _bars(loads),
    }


def peer(place: Place, python: Path, name: str, bundle: Path, silent_s: float = 0) -> Contender:
    """One of PEERS, in their environment; `silent_s` as in `Contender`."""
    topic = place.topic(name)
    command = [
        str(python), "-m", f"benchmarks.peers.{name}", "--bootstrap", place.bootstrap, "--events-topic",
        place.topic(EVENTS), "--out-topic", topic, "--group", topic, "--bundle", str(bundle.resolve()), "--state-dir",
        str(place.folder / f"{name}-state"), "--session-timeout-s", str(SESSION_TIMEOUT_S),
    ]  # fmt: skip
    changelogs = [f"changelog__{topic}--{place.topic(EVENTS)}--default"] if name == "quix" else []
    return Contender(name, command, topic, place.folder, silent_s=silent_s, own_topics=changelogs)


def _bundle(options: Any) -> Path:
    """The one given, or the synthetic one: the demo's may have a graph that the peers cannot feed."""
    bundle = bundles.choose(options.bundle, options.smoke, demo=False)
    manifest = read_manifest(bundle)
    strange = {one.name for one in manifest.inputs} - FED - set(manifest.resident)
    if strange or manifest.excluding_actions or not manifest.exclude_seen:
        raise BenchmarkError(f"the peers cannot serve {bundle.name}: it wants {sorted(strange)}, or other exclusions")
    return bundle


def _compete(
    here: Place, python: Path, bundle: Path, size: Size, names: Sequence[str], seed: int, say: Callable[[str], None]
) -> tuple[dict[str, list[Turn]], int]:
    """Turns of each contender at backlogs, and how many lists agreed."""
    manifest = read_manifest(bundle)
    load = Load(size.users, bundles.items(bundle), {next(iter(manifest.actions)): 1}, seed, size.users_zipf)
    with Arena(here, load) as arena:
        say(f"making the histories of {size.users:,} users")
        arena.fill(size.users, size.fill_each, as_imports=True)
        entrants = []
        for name in names:
            if name in OURS:
                # The peers keep L events and leave out these alone, so our worker does the same.
                flags = ["--client", OURS[name], "--history-length", str(manifest.L)]
                served = bundle
                if size.streaming:
                    served = bundles.synthetic(manifest.items, manifest.D, manifest.L, STREAMING_MODEL)
                    flags += ["--vector-cache-users", str(size.users)]
                entrants.append(arena.enter(worker(here, served, name, flags=flags), manifest.L))
            elif name in PEERS:
                entrants.append(
                    arena.enter(peer(here, python, name, bundle, size.quix_silent_s if name == "quix" else 0))
                )
        say("warming up; the peers import the histories")
        if size.streaming:
            arena.drain(load.draw_distinct(size.users), entrants)
        else:
            (first,) = arena.backlog(size.warm_up, entrants[:1]).values()
            if ECHO in names:
                entrants.insert(1, arena.enter(echo(here, round(first.list_bytes / first.lists))))
            arena.backlog(size.warm_up, entrants)
        agreed = 0 if size.streaming else _agree(here, entrants, seed)
        turns: dict[str, list[Turn]] = {entrant.contender.name: [] for entrant in entrants}
        for repeat in range(size.repeats):
            say(f"repeat {repeat + 1} of {size.repeats}")
            # The last one comes first next time. In reverse the first one would stand still for two rounds: after more
            # than half a session timeout our worker publishes nothing before the group has answered it again.
            begin = -repeat % len(entrants)
            for name, turn in arena.backlog(size.backlog, entrants[begin:] + entrants[:begin]).items():
                turns[name].append(turn)
        agreed += 0 if size.streaming else _agree(here, entrants, seed)
    return turns, agreed


def _agree(here: Place, entrants: Sequence[Entrant], seed: int) -> int:
    """Compare everybody's newest lists of a sample of users; returns how many were the same."""
    reference, *others = (entrant.contender for entrant in entrants if entrant.contender.name != ECHO)
    ours = agreement.answers(here.bootstrap, reference.topic)
    users = random.Random(seed).sample(sorted(ours), min(SAMPLE, len(ours)))
    found = {one.name: agreement.answers(here.bootstrap, one.topic, set(users)) for one in others}
    for name, theirs in found.items():
        agreement.check(reference.name, ours, name, theirs, users)
    return len(found) * len(users)


def _bars(loads: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Of the loads and contenders that took part."""
    return {
        name: figures.ratio(loads[bar.load]["backlog"], bar.figure, bar.ours, bar.theirs, at_least=bar.at_least)
        for name, bar in BARS.items()
        if bar.load in loads and {bar.ours, bar.theirs} <= set(loads[bar.load]["backlog"])
    }


def table(result: Mapping[str, Any]) -> list[str]:
    """The result for people."""
    lines = [figures.served(result)]
    for name, each in result["loads"].items():
        load = each["load"]
        lines += [
            "",
            f"{name}: {load['users']:,} users, Zipf {load['users_zipf']:g}, histories of {load['fill_each']} or more, "
            f"backlog of {load['backlog']:,}, seed {result['seed']}, {load['repeats']} repeats in turns, medians",
            *figures.rows(each["backlog"]),
            "",
            "by stage, us of wall time per event",
            *figures.rows(each["stages_us_per_event"]),
        ]
    return [
        *lines,
        "",
        f"{result['lists_that_agreed']:,} lists of the others compared with the worker's: all the same"
        if result["lists_that_agreed"]
        else "lists are not compared: another model",
        "ratios: median (least to most) of the pairs of one repeat",
        *figures.verdicts(result["bars"]),
    ]
