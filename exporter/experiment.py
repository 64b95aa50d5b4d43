"""One run of `exporter train`: from files to a log, a trained model, its figures, and a bundle.

Axes: N items, R ranked events.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from exporter import dataset, device
from exporter.checkpoint import LIMITS
from exporter.data import NEGATIVE_CODES, action_codes, first_test_event
from exporter.device import Device
from exporter.evaluation import histories_before, prequential, report, scorer_of
from exporter.export import Serving, write_bundle
from exporter.histories import Horizon, Log
from exporter.models import Plan, Recommender, create, find
from exporter.models.sampled import Sampling
from exporter.publish import prune
from exporter.settings import TrainSettings
from exporter.trainer import Recipe
from exporter.training import fit, refit, seed_everything
from stream_worker.content import Featuriser, Item
from stream_worker.errors import DataError, SettingsError
from stream_worker.settings import EXCLUDING, names_of

FEW_EVENTS = 200_000  # below, a model that learns them by heart does so too soon
DROPOUT_OF_FEW, DROPOUT_OF_MANY = 0.3, 0.05
TUNE_EVENTS = 8192  # of validation, for what is tuned after training; their histories stand in memory
EXCLUDED_LENGTH = 32  # the worker's default
CHECKPOINT = ".checkpoint.pt"
# On these no weight hangs: a run may be resumed with others. Of the data a checkpoint knows itself.
FREE = {"events", "items", "out", "keep_bundles", "resume", "tensorboard", "folds", "threads", *LIMITS}


@dataclass(frozen=True, eq=False)
class Experiment:
    """The data of a run.

    Attributes:
        items: item, title and perhaps attributes, a row an item of the model.
        log: all events.
        validation: number of the first event that is not fitted.
        test: number of the first event that is not trained on.
        actions: action -> code.
        excluding: actions that exclude an item for good.
        featuriser: what makes features of the items' content; None without an items file.
    """

    items: pl.DataFrame
    log: Log
    validation: int
    test: int
    actions: dict[str, int]
    excluding: list[str]
    featuriser: Featuriser | None = None

    @cached_property
    def content_NF(self) -> Tensor | None:
        """The features of all items, float32 [N, F]."""
        return None if self.featuriser is None else torch.from_numpy(self.featuriser(_content(self.items)))


def load(settings: TrainSettings, console: Console) -> Experiment:
    """Load, clean and split the data, and say what was dropped.

    Raises:
        DataError: a file is not as required, or holds too few events.
    """
    data = dataset.load(settings)
    for line in data.lines:
        console.print(line)
    events = data.events.height
    return split(data, settings, first_test_event(events, settings.train_share), events)


def split(data: dataset.Dataset, settings: TrainSettings, test: int, end: int) -> Experiment:
    """Train on the events before number `test`, and test on those from there to `end`.

    Without an items file the model knows the items of the training part: what comes later must not leak into it.

    Raises:
        DataError: the training part holds too few events.
    """
    items, events = data.items, data.events[:end]
    validation = round(test * (1 - settings.validation_share))
    if not 0 < validation < test:
        raise DataError(f"{settings.events}: {events.height} events are too few to train and validate on.")
    if items is None:
        items = events[:test].select("item", title=pl.lit("")).unique("item", keep="first", maintain_order=True)
    excluding = sorted(settings.excluding - ({"purchase"} if settings.repeat_purchases else set()))
    actions = action_codes(events[:test])
    kind = find(settings.model)
    log = Log.of(events, items["item"].to_list(), actions, excluding, kind.learns_negatives)
    if not kind.learns_negatives:
        actions = {name: code for name, code in actions.items() if name not in NEGATIVE_CODES}
    featuriser = None
    if settings.items and kind.reads_content:
        featuriser = Featuriser.fit(_content(items), settings.content_vectors)
    elif settings.content_vectors:
        raise SettingsError(
            f"--content-vectors: {settings.model} knows no item by its content, or there are no --items. Leave the "
            "flag out, or take two-tower, tower-hybrid or ncf."
        )
    return Experiment(items, log, validation, test, actions, excluding, featuriser)


def run(experiment: Experiment, settings: TrainSettings, clock: Callable[[], datetime], console: Console) -> Path:
    """Train, evaluate, export. Returns the bundle's directory, which is named after the time of the export.

    Raises:
        DataError: there is too little to train on.
        BundleError: the model does not survive its export.
    """
    torch.set_num_threads(settings.threads)
    model = trained(experiment, settings, console)
    figures = evaluated(model, experiment, settings)
    if figures:
        tested = int((~experiment.log.negative_E[experiment.test :]).sum())
        _print_figures(console, model.name, tested, settings.history_length, figures)
    serving = Serving(
        length=_length(settings),
        k=settings.list_length,
        actions=experiment.actions,
        excluding_actions=experiment.excluding,
        exclude_seen=settings.exclude_seen,
        report=figures,
    )
    console.print("export: torch to ONNX, and both side by side")
    bundle = write_bundle(settings.out, model, experiment.items, serving, clock(), experiment.featuriser)
    for path in settings.out.glob(_checkpoint(settings).name + "*"):  # only now is there nothing to resume
        path.unlink()
    if set(experiment.excluding) != names_of(EXCLUDING):
        console.print(f"workers: serve it with --excluding-actions {','.join(experiment.excluding)}, not the default")
    if settings.keep_bundles is not None:
        gone = prune(settings.out, settings.keep_bundles, clock())
        console.print(f"bundles: {len(gone)} older ones removed, {settings.keep_bundles} kept")
    return bundle


def trained(experiment: Experiment, settings: TrainSettings, console: Console) -> Recommender:
    """The model, fitted with early stopping, then fitted anew on the validation events, too."""
    recipe = Recipe(
        seed=settings.seed,
        batch=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup_steps,
        decay_epochs=settings.decay_epochs,
        max_epochs=settings.max_epochs,
        patience=settings.patience,
        # The refit takes at most about as long as the fit before it.
        max_minutes=settings.max_minutes and settings.max_minutes / (2 if settings.refit else 1),
        device=device.chosen(settings.device, settings.bf16),
    )
    training = experiment.log[: experiment.test]
    checkpoint = _find_checkpoint(settings)
    model = _new_model(experiment, settings, recipe.device, experiment.validation)
    epochs, window = 0, model.learner.window or _length(settings)
    if list(model.learner.parameters()):
        seen = replace(_served(settings), length=window)
        course = fit(
            model.learner,
            training,
            experiment.validation,
            seen,
            recipe,
            checkpoint,
            console,
            settings.resume,
            settings.tensorboard,
        )
        epochs = course.best
        console.print(
            f"training on {recipe.device}: {course.seconds:.0f} s, best of {len(course.losses)} epochs: {course.best}, "
            f"validation NDCG@10 {course.ndcgs[course.best - 1]:.4f}"
        )
    validating_R = experiment.validation + np.flatnonzero(~training.negative_E[experiment.validation :])
    validating_R = validating_R[:: max(1, len(validating_R) // TUNE_EVENTS)]
    model.tune(list(histories_before(training, validating_R, _served(settings))))
    if not settings.refit:
        return model
    whole = _new_model(experiment, settings, recipe.device, experiment.test)
    whole.adopt(model)
    if epochs and not refit(whole.learner, training, window, epochs, recipe, console, checkpoint, settings.resume):
        console.print("refit: out of time; the model of the best epoch is kept, without the validation events")
        return model
    return whole


def evaluated(model: Recommender, experiment: Experiment, settings: TrainSettings) -> dict[str, float]:
    """The figures of the test part, beside popularity's; empty without a test part.

    `hr@10` … exclude (and remember) the user's whole history, the protocol of the literature; `served_hr@10` … only
    the events that a worker keeps.
    """
    events_R = experiment.test + np.flatnonzero(~experiment.log.negative_E[experiment.test :])
    if not len(events_R):
        return {}
    popularity = create("popularity", _plan(experiment, settings, experiment.test))
    whole = Horizon(_length(settings), None, None, settings.exclude_seen)
    figures: dict[str, float] = {}
    for prefix, scored, horizon in (
        ("", model, whole),
        ("popularity_", popularity, whole),
        ("served_", model, _served(settings)),
        ("served_popularity_", popularity, _served(settings)),
    ):
        figures |= report(prequential(scorer_of(scored), experiment.log, events_R, horizon), prefix)
    return figures


def _new_model(experiment: Experiment, settings: TrainSettings, place: Device, until: int) -> Recommender:
    seed_everything(settings.seed, place)
    model = create(settings.model, _plan(experiment, settings, until))
    if settings.negatives:
        if not isinstance(model.learner, Sampling):
            raise SettingsError(f"--negatives: {settings.model} takes no sample. Leave the flag out.")
        model.learner.negatives = settings.negatives
    return model


def _plan(experiment: Experiment, settings: TrainSettings, until: int) -> Plan:
    """What a model may know before event `until`."""
    return Plan(
        experiment.items.height,
        experiment.log[:until],
        _length(settings),
        settings.window,
        settings.dim,
        _dropout(settings, experiment.test),
        repeats=not settings.exclude_seen,
        content_NF=experiment.content_NF,
        score=settings.score,
        time_gaps=settings.time_gaps,
        action_embeddings=settings.action_embeddings,
    )


def _dropout(settings: TrainSettings, events: int) -> float:
    if settings.dropout is not None:
        return settings.dropout
    return DROPOUT_OF_FEW if events < FEW_EVENTS else DROPOUT_OF_MANY


def _content(items: pl.DataFrame) -> list[Item]:
    """Title and attributes of each item."""
    return [(row["title"], row.get("attributes") or {}) for row in items.iter_rows(named=True)]


def _checkpoint(settings: TrainSettings) -> Path:
    """Named after the model and all flags that weights hang on, so that runs beside each other each have their own."""
    flags = settings.model_dump_json(exclude=FREE)
    return settings.out / f".{settings.model}-{zlib.crc32(flags.encode()):08x}{CHECKPOINT}"


def _find_checkpoint(settings: TrainSettings) -> Path:
    """The same, where there is something to resume, or nothing at all.

    Raises:
        SettingsError: there are only those of runs with other flags.
    """
    own = _checkpoint(settings)
    others = sorted(settings.out.glob(f".*{CHECKPOINT}*"))
    if settings.resume and others and not any(path.name.startswith(own.name) for path in others):
        raise SettingsError(
            f"--resume: {others[-1]} is of a run with other flags. Give the same, or leave --resume out."
        )
    return own


def _served(settings: TrainSettings) -> Horizon:
    return Horizon(_length(settings), settings.history_length, EXCLUDED_LENGTH, settings.exclude_seen)


def _length(settings: TrainSettings) -> int:
    """L: the worker keeps no more than H, and a graph that asks for more could not be served."""
    return min(settings.length, settings.history_length)


def _print_figures(console: Console, name: str, events: int, kept: int, figures: dict[str, float]) -> None:
    title = f"{events:,} test events, all items ranked"
    table = Table("", "HR@10", "NDCG@10", "MRR", title=title, title_justify="left")
    for label, prefix in (
        (name, ""),
        ("popularity baseline", "popularity_"),
        (f"{name}, served ({kept} events kept)", "served_"),
        ("popularity baseline, served", "served_popularity_"),
    ):
        table.add_row(label, *(f"{figures[prefix + metric]:.3f}" for metric in ("hr@10", "ndcg@10", "mrr")))
    console.print(table)
