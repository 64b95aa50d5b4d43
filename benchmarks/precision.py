"""`python -m benchmarks.precision`: what bfloat16 changes in training on this machine's CPU, SASRec on one thread.

Steps on Complete Journey at the defaults (batches of 32 windows of 50 events): float32 and bfloat16 in turns, on models
of their own and the same batches; the median of each, and of the ratios within each turn. Validation NDCG@10 on
MovieLens 100k after a few passes, with several seeds.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from benchmarks import machine, quality
from exporter.device import Device
from exporter.experiment import Experiment
from exporter.histories import Horizon
from exporter.models import Plan, Recommender, create
from exporter.trainer import Recipe, Trainer, batches_of
from exporter.training import Course, fit, seed_everything
from stream_worker.errors import StreamWorkerError

WINDOW = 50
DEVICES = (Device("cpu"), Device("cpu", bf16=True))


def new_model(experiment: Experiment, seed: int) -> Recommender:
    """SASRec at the command line's defaults."""
    seed_everything(seed)
    return create("sasrec", Plan(experiment.items.height, experiment.log[: experiment.validation], WINDOW))


def steps(experiment: Experiment, turns: int) -> list[tuple[float, float]]:
    """Seconds of a training step in float32 and in bfloat16, a pair a turn."""
    log, size = experiment.log[: experiment.validation], Recipe().batch
    trainers = [Trainer(new_model(experiment, 0), log, WINDOW, Recipe(device=device)) for device in DEVICES]
    batches = batches_of(log, WINDOW, size, np.random.default_rng(0))
    pairs = []
    for turn in range(turns):
        feeds, target_BL = next(batches)
        took = [0.0, 0.0]
        for which in (0, 1) if turn % 2 else (1, 0):
            started = time.perf_counter()
            trainers[which].step(feeds, target_BL)
            took[which] = time.perf_counter() - started
        pairs.append((took[0], took[1]))
    return pairs[turns // 10 :]  # the first ones warm up


def course(experiment: Experiment, device: Device, seed: int, epochs: int, console: Console) -> Course:
    """How training goes in so many passes."""
    model = new_model(experiment, seed)
    recipe = Recipe(seed=seed, max_epochs=epochs, patience=epochs, device=device)
    horizon = Horizon(WINDOW, quality.WHOLE, 32, exclude_seen=True)
    log = experiment.log[: experiment.test]
    with tempfile.TemporaryDirectory() as beside:
        return fit(model, log, experiment.validation, horizon, recipe, Path(beside) / "best.pt", console)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument("--turns", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    console = Console(stderr=True, highlight=False)
    on = machine.describe()
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {on['cpu']}, one thread, load {on['load_average']}")
    try:
        groceries, movies = quality.groceries(), quality.prequential_movielens()
    except StreamWorkerError as error:
        print(f"precision: {error}", file=sys.stderr)
        return error.exit_code
    pairs = np.array(steps(groceries, options.turns)) * 1000
    fp32, bf16 = np.median(pairs, axis=0)
    low, ratio, high = np.percentile(pairs[:, 1] / pairs[:, 0], [25, 50, 75])
    print(f"step, {groceries.items.height:,} items: fp32 {fp32:.2f} ms, bf16 {bf16:.2f} ms, "
          f"bf16 / fp32 {ratio:.2f} (middle half {low:.2f} to {high:.2f}, {len(pairs)} turns)")  # fmt: skip
    for device in DEVICES:
        courses = [course(movies, device, seed, options.epochs, console) for seed in range(options.seeds)]
        ndcgs = " ".join(f"{max(one.ndcgs):.4f}" for one in courses)
        losses = " ".join(f"{one.losses[-1]:.3f}" for one in courses)
        print(f"MovieLens, best of {options.epochs} passes, {device}: validation NDCG@10 {ndcgs}; last loss {losses}; "
              f"{np.mean([one.seconds for one in courses]):.0f} s")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
