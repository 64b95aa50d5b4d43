"""Cross-validation over time folds: how much do the figures hang on where the log is cut?

Rolling origin (Tashman, Int. J. Forecasting 2000): fold i trains on all blocks before it and tests on the next, so that
no model sees the future. All folds lie in the training part: the test part is read once, by the bundle's own figures.
"""

import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from exporter import dataset
from exporter.data import first_test_event
from exporter.experiment import evaluated, split, trained
from exporter.settings import TrainSettings

SHOWN = {"HR@10": "hr@10", "NDCG@10": "ndcg@10", "MRR": "mrr", "HR@10 of popularity": "popularity_hr@10"}


def cuts(events: int, folds: int) -> list[tuple[int, int]]:
    """For each fold the number of the first event it tests, and of the first after those."""
    edges = [round(events * block / (folds + 1)) for block in range(1, folds + 2)]
    return list(pairwise(edges))


def cross_validate(settings: TrainSettings, console: Console) -> list[dict[str, float]]:
    """Train and test one model a fold; print their figures, mean and standard deviation.

    Raises:
        DataError: a fold holds too few events.
    """
    torch.set_num_threads(settings.threads)
    data = dataset.load(settings)
    training = first_test_event(data.events.height, settings.train_share)
    figures = []
    with tempfile.TemporaryDirectory() as beside:  # what is left of a fold is nothing to resume
        own = settings.model_copy(update={"out": Path(beside), "resume": False, "tensorboard": None})
        for number, (test, end) in enumerate(cuts(training, settings.folds), start=1):
            console.print(f"fold {number} of {settings.folds}: {test:,} events train, {end - test:,} test")
            experiment = split(data, own, test, end)
            figures.append(evaluated(trained(experiment, own, console), experiment, own))
    table = Table("", *SHOWN, title=f"{settings.folds} time folds of the training part", title_justify="left")
    for number, found in enumerate(figures, start=1):
        table.add_row(f"fold {number}", *(f"{found[name]:.3f}" for name in SHOWN.values()))
    values = np.array([[found[name] for name in SHOWN.values()] for found in figures])
    spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(len(SHOWN))
    table.add_row(
        "mean ± sd", *(f"{mean:.3f} ± {sd:.3f}" for mean, sd in zip(values.mean(axis=0), spread, strict=True))
    )
    console.print(table)
    return figures
