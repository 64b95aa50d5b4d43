"""Training: fit with early stopping on the validation part, then refit on all; interrupted runs can go on.

Axes: W windows, L history length.
"""

import os
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from exporter.checkpoint import Checkpoint
from exporter.curves import Curves
from exporter.device import Device
from exporter.evaluation import ndcg, prequential, scorer_of
from exporter.histories import Horizon, Log
from exporter.models.base import Recommender
from exporter.trainer import CPU, Recipe, Trainer

LEAST_GAIN = 0.003  # of NDCG@10, as a share: for less, no epoch is worth its time
VALIDATION_EVENTS = 20_000  # ranked after each pass; of more, so many at equal distances


@dataclass
class Course:
    """How training went: the mean loss and validation NDCG@10 of each epoch; epochs from 1, 0 = none.

    Attributes:
        best: the epoch with the highest NDCG@10.
        better: the last epoch that was better by `LEAST_GAIN` than the one before it that was so.
    """

    losses: list[float] = field(default_factory=list)
    ndcgs: list[float] = field(default_factory=list)
    best: int = 0
    better: int = 0
    seconds: float = 0.0

    def add(self, loss: float, ndcg: float, seconds: float) -> None:
        """One more epoch."""
        if ndcg > max(self.ndcgs, default=-1.0):
            self.best = len(self.ndcgs) + 1
        if not self.better or ndcg > (1 + LEAST_GAIN) * self.ndcgs[self.better - 1]:
            self.better = len(self.ndcgs) + 1
        self.losses.append(loss)
        self.ndcgs.append(ndcg)
        self.seconds = seconds

    def over(self, recipe: Recipe) -> bool:
        """Whether another epoch is of no use, or not allowed."""
        epochs = len(self.losses)
        tired = bool(epochs) and epochs - self.better >= recipe.patience
        return tired or epochs >= recipe.max_epochs or _left(recipe, self.seconds) <= 0


def seed_everything(seed: int, device: Device = CPU) -> None:
    """Make torch repeatable in this process, with the same device and, on the CPU, number of threads.

    On a GPU some operations have no deterministic kernel; there torch warns, and the last bits may differ.
    """
    torch.manual_seed(seed)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS reads when it is first used
    torch.use_deterministic_algorithms(True, warn_only=device.name != "cpu")
    # Filling costs a tenth of the time, and nothing here reads uninitialised memory. (mypy knows no such name.)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def fit(
    model: Recommender,
    log: Log,
    split: int,
    horizon: Horizon,
    recipe: Recipe,
    checkpoint: Path,
    console: Console,
    resume: bool = False,
    tensorboard: Path | None = None,
) -> Course:
    """Train the model in place until validation stops improving; leave it with the weights of the best epoch.

    It trains on the recipe's device, is validated on the CPU, and stands there in the end.

    Args:
        log: the training part; its first `split` events are fitted, the rest validates.
        horizon: what the worker will show the model; validation ranks with it.
        checkpoint: where the best weights are kept meanwhile, and beside them what a resume needs.
        resume: go on from there, if there is something.
        tensorboard: where to log the course; None does not.

    Raises:
        DataError: there is nothing to fit or to validate on, or the loss is not finite.
        SettingsError: the checkpoint is of another run.
    """
    course = Course()
    if not list(model.parameters()):
        return course
    events_R = split + np.flatnonzero(~log.negative_E[split:])
    events_R = events_R[:: max(1, len(events_R) // VALIDATION_EVENTS)]
    trainer = Trainer(model, log[:split], horizon.length, recipe)
    kept = Checkpoint.of(checkpoint, "fit", log[:split], model, recipe)
    state = kept.load() if resume else None
    if state is not None:
        trainer.load(state["trainer"])
        course = Course(**state["course"])
        console.print(f"resume: after epoch {trainer.epochs}")
    began = time.monotonic() - course.seconds
    with _progress(console, recipe) as progress, Curves(tensorboard) as curves:
        while not course.over(recipe):
            loss = _epoch(trainer, progress, began + _left(recipe, 0))
            gain = ndcg(prequential(scorer_of(trainer.averaged), log, events_R, horizon), 10)
            course.add(loss, gain, time.monotonic() - began)
            if course.best == trainer.epochs:
                save(trainer.averaged, checkpoint)
            kept.save({"trainer": trainer.state(), "course": asdict(course)})
            curves.add(trainer.epochs, loss=loss, ndcg=course.ndcgs[-1], learning_rate=trainer.learning_rate)
            _tell(
                console,
                progress,
                short=f"epoch {trainer.epochs}, NDCG@10 {course.ndcgs[-1]:.4f}",
                line=f"epoch {trainer.epochs}: loss {loss:.3f}, validation NDCG@10 {course.ndcgs[-1]:.4f} "
                f"(best: epoch {course.best}), {course.seconds:.0f} s",
            )
    model.cpu().load_state_dict(torch.load(checkpoint, weights_only=True))
    return course


def refit(
    model: Recommender,
    log: Log,
    length: int,
    epochs: int,
    recipe: Recipe,
    console: Console,
    checkpoint: Path | None = None,
    resume: bool = False,
) -> bool:
    """Train a new model in place on all of the log for so many epochs, and leave it on the CPU.

    Args:
        checkpoint, resume: as for `fit`; None keeps nothing.

    Returns:
        Whether it got there; False if `max_minutes` cut it short, and the model is a torso.

    Raises:
        DataError: there is nothing to fit, or the loss is not finite.
        SettingsError: the checkpoint is of another run.
    """
    recipe = replace(recipe, max_epochs=epochs)
    trainer = Trainer(model, log, length, recipe)
    kept = checkpoint and Checkpoint.of(checkpoint, "refit", log, model, recipe)
    seconds = 0.0
    state: dict[str, Any] | None = kept.load() if kept and resume else None
    if state is not None:
        trainer.load(state["trainer"])
        seconds = state["seconds"]
    began = time.monotonic() - seconds
    with _progress(console, recipe) as progress:
        while trainer.epochs < epochs:
            loss = _epoch(trainer, progress, began + _left(recipe, 0))
            seconds = time.monotonic() - began
            if _left(recipe, seconds) <= 0:
                return False
            if kept:
                kept.save({"trainer": trainer.state(), "seconds": seconds})
            note = f"refit {trainer.epochs}/{epochs}"
            _tell(console, progress, note, f"{note}: loss {loss:.3f}, {seconds:.0f} s")
    model.cpu().load_state_dict(trainer.averaged.state_dict())
    return True


def save(model: Recommender, path: Path) -> None:
    """Write the weights, whole or not at all."""
    beside = path.with_name(path.name + ".new")
    torch.save(model.state_dict(), beside)
    beside.rename(path)


def _epoch(trainer: Trainer, progress: Progress, deadline: float) -> float:
    task = progress.task_ids[0]

    def begin(batches: int) -> None:
        most = progress.tasks[0].fields["epochs"]
        progress.update(task, total=most * batches, completed=trainer.epochs * batches)

    return trainer.epoch(deadline, begin, lambda: progress.advance(task))


def _left(recipe: Recipe, seconds: float) -> float:
    """Seconds of `max_minutes` that are left after so many."""
    return 60 * recipe.max_minutes - seconds if recipe.max_minutes else float("inf")


def _tell(console: Console, progress: Progress, short: str, line: str) -> None:
    """On a terminal the short form beside the bar, within 80 columns; else a line."""
    progress.update(progress.task_ids[0], note=short)
    if not console.is_terminal:
        console.print(line)


def _progress(console: Console, recipe: Recipe) -> Progress:
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("at most"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    )
    progress.add_task("training", total=None, note="", epochs=recipe.max_epochs)
    return progress
