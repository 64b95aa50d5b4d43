"""`python -m benchmarks.quality`: how good the lists of the zoo are, beside published and measured baselines.

All items are ranked and none is sampled; what is tuned is tuned on validation, and the test part is read once a run.

    ml-100k-p1   leave-one-out: each user's last event tests, the one before validates
    ml-100k-p2   prequential: the last fifth of all events, each ranked after all that its user did before
    groceries    prequential on Complete Journey, items = product types, receipts shuffled; repeats are listed

Histories are whole, as in the literature; `served` keeps the newest events that a worker keeps.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from rich.console import Console

from benchmarks import journey, machine
from demo import movielens
from demo.wheels import ROOT
from exporter.evaluation import Floats, hit_rate, ndcg, prequential, scorer_of
from exporter.experiment import Experiment, trained
from exporter.histories import Horizon, Log
from exporter.models import REGISTRY
from exporter.settings import TrainSettings
from stream_worker.errors import StreamWorkerError

TRAIN_SHARE, VALIDATION_SHARE = 0.8, 0.1
WHOLE = 4096  # events kept of a user: more than anybody has
COUNTS = ("popularity", "rules", "itemknn", "personal")  # of these every seed gives the same
CODES = {"view": 1, "purchase": 4}


@dataclass(frozen=True)
class Figure:
    """One model under one protocol with one seed; `train_s` is CPU time on one thread: other jobs stretch it less."""

    protocol: str
    model: str
    seed: int
    hr: float
    ndcg: float
    served_hr: float
    served_ndcg: float
    first_hr: float | None
    first_ndcg: float | None
    train_s: float


@dataclass(frozen=True)
class Protocol:
    """What is measured, what others reach there, and what we must and would reach, as HR@10/NDCG@10."""

    load: Callable[[], Experiment]
    exclude_seen: bool
    references: dict[str, str]
    must: str
    goal: str
    seeds: int = 1  # where one seed says little


def movielens_events() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Events in time order (ties as in the file) and items."""
    events, items = (pl.read_parquet(path) for path in movielens.fetch(ROOT / ".cache" / "movielens"))
    return events.with_columns(pl.col("time") * 1000).sort("time", maintain_order=True), items.select("item", "title")


def leave_one_out() -> Experiment:
    """Each user's last event stands at the end of the log, the one before it in front of those."""
    events, items = movielens_events()
    newest = pl.int_range(pl.len()).reverse().over("user")
    events = events.with_columns(part=2 - newest.clip(0, 2)).sort("part", maintain_order=True)
    log = Log.of(events, items["item"].to_list(), CODES, [])
    validation, test = (int((events["part"] < part).sum()) for part in (1, 2))
    return Experiment(items, log, validation, test, CODES, [])


def prequential_movielens() -> Experiment:
    """The first four fifths train."""
    return by_time(*movielens_events())


def groceries(seed: int = 0) -> Experiment:
    """Complete Journey; within a receipt the file's order, by product id, would leak, so it is shuffled."""
    events = pl.read_parquet(journey.fetch(ROOT / ".cache" / "journey")).with_columns(pl.col("time") * 1000)
    chance = pl.Series("chance", np.random.default_rng(seed).random(events.height))
    events = events.with_columns(chance).sort("time", "user", "chance").drop("chance")
    items = events.select("item", title=pl.lit("")).unique("item").sort("item")
    return by_time(events, items)


def by_time(events: pl.DataFrame, items: pl.DataFrame) -> Experiment:
    """Split by time."""
    test = round(events.height * TRAIN_SHARE)
    log = Log.of(events, items["item"].to_list(), CODES, [])
    return Experiment(items, log, round(test * (1 - VALIDATION_SHARE)), test, CODES, [])


PROTOCOLS = {
    "ml-100k-p1": Protocol(
        leave_one_out, True,
        {"popularity": ".084/.044", "iALS fold-in": ".142/.069", "GRU4Rec": ".178/.093", "SASRec.pytorch": ".181/.096"},
        must=".212/.110", goal=".230/.120", seeds=5,
    ),
    "ml-100k-p2": Protocol(
        prequential_movielens, True,
        {"popularity": ".074/.034", "iALS fold-in": ".140/.071", "GRU4Rec": ".187/.093"},
        must=".205/.106", goal=".215/.110",
    ),
    "groceries": Protocol(
        groceries, False,
        {"popularity": ".131/.070", "iALS fold-in": ".079/.035", "personal + rules": ".241/.139"},
        must=".250/.145, first-time .086/.045", goal=".270/.158, first-time .095/.050",
    ),
}  # fmt: skip


def measure(name: str, protocol: Protocol, experiment: Experiment, model: str, seed: int, console: Console) -> Figure:
    """Train with the command line's defaults, then rank the test part."""
    with tempfile.TemporaryDirectory() as out:
        settings = TrainSettings(
            events=Path(), out=Path(out), model=model, seed=seed, threads=1, exclude_seen=protocol.exclude_seen,
            history_length=WHOLE,
        )  # fmt: skip
        started = time.process_time()
        made = trained(experiment, settings, console)
        train_s = time.process_time() - started
    events_R = np.arange(experiment.test, len(experiment.log))
    whole = Horizon(settings.length, None, None, protocol.exclude_seen)
    kept = TrainSettings.model_fields["history_length"].default
    rank_R, served_R = (
        prequential(scorer_of(made), experiment.log, events_R, horizon)
        for horizon in (whole, replace(whole, kept=kept))
    )
    (hr, gain), (served_hr, served_gain) = figures(rank_R), figures(served_R)
    first_hr: float | None = None
    first_gain: float | None = None
    if not protocol.exclude_seen:
        # What is new to the user is looked for among what is new to the user.
        first_R = events_R[first_times(experiment.log)[events_R]]
        new = replace(whole, exclude_seen=True)
        first_hr, first_gain = figures(prequential(scorer_of(made), experiment.log, first_R, new))
    return Figure(
        name, model, seed, hr, gain, served_hr, served_gain, first_hr, first_gain, round(train_s, 1)
    )  # fmt: skip


def first_times(log: Log) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """bool [E]: the user has not had the item before."""
    first_E = np.zeros(len(log), bool)
    pairs_E = log.user_E * (log.item_E.max() + 1) + log.item_E
    first_E[np.unique(pairs_E, return_index=True)[1]] = True
    return first_E


def figures(rank_R: Floats) -> tuple[float, float]:
    """HR@10 and NDCG@10."""
    return round(hit_rate(rank_R, 10), 4), round(ndcg(rank_R, 10), 4)


def table(found: Sequence[Figure]) -> list[str]:
    """A line a model under each protocol, the mean of its seeds, under what others reach."""
    lines = []
    for name in dict.fromkeys(figure.protocol for figure in found):
        protocol = PROTOCOLS[name]
        lines += [
            "",
            f"{name + '  HR@10/NDCG@10':32}{'whole history':>16}{'served':>14}{'first-time':>14}{'CPU s':>9}",
        ]
        lines += [f"  {reference + ' (elsewhere)':30}{value:>16}" for reference, value in protocol.references.items()]
        lines += [f"  {'must':30}{protocol.must:>16}", f"  {'goal':30}{protocol.goal:>16}"]
        for model in dict.fromkeys(figure.model for figure in found if figure.protocol == name):
            lines.append(_line(model, [one for one in found if (one.protocol, one.model) == (name, model)]))
    return lines


def _line(model: str, runs: Sequence[Figure]) -> str:
    seeds = f" (mean of {len(runs)} seeds)" if len(runs) > 1 else ""
    cells = [_pair(runs, "hr", "ndcg"), _pair(runs, "served_hr", "served_ndcg"), _pair(runs, "first_hr", "first_ndcg")]
    train_s = np.mean([run.train_s for run in runs])
    return f"  {model + seeds:30}{cells[0]:>16}{cells[1]:>14}{cells[2]:>14}{train_s:9.0f}"


def _pair(runs: Sequence[Figure], *names: str) -> str:
    if getattr(runs[0], names[0]) is None:
        return "-"
    return "/".join(f"{np.mean([getattr(run, name) for run in runs]):.3f}".lstrip("0") for name in names)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; exit code 0 whether or not a figure is reached."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--protocols", nargs="+", default=list(PROTOCOLS), choices=PROTOCOLS)
    parser.add_argument("--models", nargs="+", default=sorted(REGISTRY), help="of the zoo, or package.module:Class")
    parser.add_argument("--seeds", type=int, help="runs of each model with chance in it (5 under ml-100k-p1, else 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all runs there")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    console = Console(stderr=True, highlight=False)
    found: list[Figure] = []
    try:
        for name in options.protocols:
            protocol = PROTOCOLS[name]
            experiment = protocol.load()
            for model in options.models:
                for seed in range(1 if model in COUNTS else options.seeds or protocol.seeds):
                    found.append(measure(name, protocol, experiment, model, seed, console))
                    print(f".. {found[-1]}", file=sys.stderr, flush=True)
    except StreamWorkerError as error:
        print(f"quality: {error}", file=sys.stderr)
        return error.exit_code
    on = machine.describe()
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {on['cpu']}, one thread, load {on['load_average']}")
    print("\n".join(table(found)))
    if options.json:
        options.json.write_text(json.dumps({"machine": on, "runs": [asdict(one) for one in found]}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
