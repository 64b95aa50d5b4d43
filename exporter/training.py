"""Training: windows of the fitting part in small batches, AdamW, early stopping on the validation part.

Axes: W windows, L history length.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from exporter.evaluation import ndcg, prequential, scorer_of
from exporter.histories import Horizon, Ints, Log, windows
from exporter.models.base import Recommender
from stream_worker.errors import DataError

BETAS = (0.9, 0.98)  # of SASRec's Adam


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        seed: of the weights, the windows, their order and dropout.
        batch: windows in a batch; small ones suit small data.
        patience: epochs without a better NDCG@10 on the validation part after which training stops.
        clip: largest norm of a step's gradients.
        max_minutes: of training; the same seed gives the same weights only where this does not cut it short.
    """

    seed: int = 0
    batch: int = 32
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    clip: float = 5.0
    max_epochs: int = 100
    patience: int = 5
    max_minutes: float | None = None


@dataclass
class Course:
    """How training went: the mean loss and validation NDCG@10 of each epoch, the best epoch (from 1; 0 = none)."""

    losses: list[float] = field(default_factory=list)
    ndcgs: list[float] = field(default_factory=list)
    best: int = 0
    seconds: float = 0.0


def seed_everything(seed: int) -> None:
    """Make torch repeatable in this process, on the CPU with the same number of threads."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    # Filling costs a tenth of the time, and nothing here reads uninitialised memory. (mypy knows no such name.)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def fit(
    model: Recommender, log: Log, split: int, horizon: Horizon, recipe: Recipe, checkpoint: Path, console: Console
) -> Course:
    """Train the model in place until validation stops improving; leave it with the weights of the best epoch.

    Args:
        log: the training part; its first `split` events are fitted, the rest validates.
        horizon: what the worker will show the model; validation ranks with it.
        checkpoint: where the best weights are kept meanwhile.

    Raises:
        DataError: there is nothing to fit or to validate on, or the loss is not finite.
    """
    course = Course()
    if not list(model.parameters()):
        return course
    events_R = np.arange(split, len(log))
    started = time.monotonic()
    deadline = _deadline(started, recipe)
    with _progress(console) as progress:
        for epoch, loss in enumerate(_epochs(model, log[:split], horizon.length, recipe, deadline, progress), start=1):
            course.losses.append(loss)
            course.ndcgs.append(ndcg(prequential(scorer_of(model), log, events_R, horizon), 10))
            course.seconds = time.monotonic() - started
            if course.ndcgs[-1] > max(course.ndcgs[:-1], default=-1.0):
                course.best = epoch
                save(model, checkpoint)
            note = f"epoch {epoch}: loss {loss:.3f}, validation NDCG@10 {course.ndcgs[-1]:.4f}"
            _tell(
                console,
                progress,
                short=f"epoch {epoch}, NDCG@10 {course.ndcgs[-1]:.4f}",
                line=f"{note} (best: epoch {course.best}), {course.seconds:.0f} s",
            )
            if epoch - course.best >= recipe.patience or epoch == recipe.max_epochs or time.monotonic() > deadline:
                break
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    return course


def refit(model: Recommender, log: Log, length: int, epochs: int, recipe: Recipe, console: Console) -> bool:
    """Train a new model in place on all of the log for so many epochs.

    Returns:
        Whether it got there; False if `max_minutes` cut it short, and the model is a torso.

    Raises:
        DataError: there is nothing to fit, or the loss is not finite.
    """
    started = time.monotonic()
    limited = replace(recipe, max_epochs=epochs)
    deadline = _deadline(started, recipe)
    with _progress(console) as progress:
        for epoch, loss in enumerate(_epochs(model, log, length, limited, deadline, progress), start=1):
            note = f"refit {epoch}/{epochs}"
            _tell(console, progress, note, f"{note}: loss {loss:.3f}, {time.monotonic() - started:.0f} s")
            if time.monotonic() > deadline:
                return False
            if epoch == epochs:
                break
    return True


def _epochs(
    model: Recommender, log: Log, length: int, recipe: Recipe, deadline: float, progress: Progress
) -> Iterator[float]:
    """Train for ever, or until the deadline cuts the last epoch short; yields the mean loss of each epoch."""
    if not log.known_E.any():
        raise DataError("events: none is left to train on. Give a longer log.")
    rng = np.random.default_rng(recipe.seed)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=BETAS, fused=True
    )
    task = progress.add_task("training", total=None, note="")
    for epoch in count(1):
        batches = list(batches_of(log, length, recipe.batch, rng))
        progress.update(task, total=recipe.max_epochs * len(batches), completed=(epoch - 1) * len(batches))
        losses = []
        for feeds, target_BL in batches:
            losses.append(step(model, optimiser, feeds, target_BL, recipe.clip))
            progress.advance(task)
            if time.monotonic() > deadline:
                break
        if not np.isfinite(losses).all():
            raise DataError(f"training: the loss is not finite in epoch {epoch}. Lower --learning-rate.")
        yield float(np.mean(losses))


def step(
    model: Recommender, optimiser: torch.optim.Optimizer, feeds: dict[str, Tensor], target_BL: Tensor, clip: float
) -> float:
    """One step of the optimiser; the loss before it."""
    model.train()
    optimiser.zero_grad()
    loss = model.loss(feeds, target_BL)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimiser.step()
    return loss.item()


def batches_of(
    log: Log, length: int, size: int, rng: np.random.Generator
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """One epoch of training batches: feeds of at most `size` windows, and target_BL int64, in random order."""
    events_WL = windows(log, length, rng)
    for start_rows in np.split(rng.permutation(len(events_WL)), np.arange(size, len(events_WL), size)):
        events = _trim(events_WL[start_rows])
        inputs, targets = events[:, :-1], events[:, 1:]
        feeds = {
            "history_items": np.where(inputs >= 0, log.item_E[inputs], -1).astype(np.int32),
            "history_actions": np.where(inputs >= 0, log.action_E[inputs], 0).astype(np.uint8),
            "history_times": np.where(inputs >= 0, log.time_E[inputs], 0),
        }
        target_BL = np.where(targets >= 0, log.item_E[targets], -1)
        yield {name: torch.from_numpy(array) for name, array in feeds.items()}, torch.from_numpy(target_BL)


def save(model: Recommender, path: Path) -> None:
    """Write the weights, whole or not at all."""
    beside = path.with_name(path.name + ".new")
    torch.save(model.state_dict(), beside)
    beside.rename(path)


def _trim(events_WL: Ints) -> Ints:
    """Drop leading columns that no window of the batch uses; one padding column stays for the empty history."""
    longest = int((events_WL >= 0).sum(axis=1).max())
    return events_WL[:, -min(events_WL.shape[1], longest + 1) :]


def _deadline(started: float, recipe: Recipe) -> float:
    return started + 60 * recipe.max_minutes if recipe.max_minutes else float("inf")


def _tell(console: Console, progress: Progress, short: str, line: str) -> None:
    """On a terminal the short form beside the bar, within 80 columns; else a line."""
    progress.update(progress.task_ids[0], note=short)
    if not console.is_terminal:
        console.print(line)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("at most"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    )
