"""One run of `exporter quantize`: a bundle written anew in 8 bits, held to the lists that it gave before.

What makes a smaller bundle out of a bundle changes graph and item tensors (`Small`); measuring, the gate and writing
are the same for whatever comes beside `in_int8`.

Axes: B users, N items, D item dimension, R ranked events.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from exporter import dataset
from exporter.data import NEGATIVE_ACTIONS, first_test_event
from exporter.experiment import EXCLUDED_LENGTH
from exporter.export import EXAMPLE_EXCLUDED, EXAMPLE_USERS, tensor_entry
from exporter.histories import Feeds, Horizon, Ints, Log
from exporter.impact import Impact, measure
from exporter.int8 import (
    ITEM_SCALES,
    ITEM_VECTORS,
    ZERO_POINT,
    items_to_int8,
    quantize_rows,
    weights_to_int8,
    with_outputs,
)
from exporter.parity import random_feeds
from exporter.publish import publish, save_arrays
from exporter.settings import QuantizeSettings
from stream_worker.bundle import Bundle
from stream_worker.errors import BundleError, DataError, SettingsError
from stream_worker.inference import create_session
from stream_worker.manifest import (
    CONTENT,
    EXAMPLE,
    ITEM_ENCODER,
    ITEM_ROWS,
    ITEMS,
    MODEL,
    Manifest,
    ResidentEntry,
)

CANDIDATES = 64  # of the example's users
SLICE = 8


@dataclass(frozen=True, eq=False)
class Small:
    """What takes the place of a bundle's graph and item tensors.

    Attributes:
        tensors: padded as the worker pads them.
        stepped: tensors [B, D] of the graph that it rounds.
    """

    model: onnx.ModelProto
    tensors: Feeds
    resident: dict[str, ResidentEntry]
    stepped: list[str]


def run(settings: QuantizeSettings, clock: Callable[[], datetime], console: Console) -> Path:
    """Quantise, measure, and write if the loss is small enough. Returns the new bundle's directory.

    Raises:
        BundleError: there is nothing to quantise, the graph is not understood, or its lists lose too much.
        DataError: no event is left to rank.
    """
    if not (settings.items_int8 or settings.weights_int8):
        raise SettingsError("--no-items-int8 --no-weights-int8: nothing is left to quantise. Leave one of them out.")
    source = Bundle(settings.bundle)
    small = in_int8(source, settings.items_int8, settings.weights_int8)
    log, events_R = _test_events(settings, source, console)
    horizon = Horizon(source.manifest.L, settings.history_length, EXCLUDED_LENGTH, source.manifest.exclude_seen)

    def fill(beside: Path) -> Manifest:
        return _write(beside, source, small)

    def approve(quantised: Bundle) -> None:
        impact = measure(source, quantised, log, events_R, horizon, settings.seed)
        _print(console, source, quantised, impact)
        if impact.loss > settings.max_loss:
            raise BundleError(
                f"bundle {source.path}: quantised, it loses {impact.loss:.2%} of its NDCG@10, more than --max-loss "
                f"{settings.max_loss:.2%}. Nothing is written. Try --no-items-int8 or --no-weights-int8."
            )

    try:
        return publish(settings.out, fill, clock(), approve)
    except OSError as error:
        raise SettingsError(f"--out {settings.out}: {error.strerror}. Name a directory that can be written.") from error


def in_int8(source: Bundle, items: bool, weights: bool) -> Small:
    """The bundle's graph with 8-bit weights, items, or both, where it has them in float32.

    Raises:
        BundleError: it has none of these, or uses its items in a way that is not understood.
    """
    model = onnx.load(source.path / MODEL)
    tensors, resident = dict(source.items.tensors), dict(source.manifest.resident)
    stepped: list[str] = []
    done = weights_to_int8(model) if weights else 0
    if items and ITEM_VECTORS in tensors and tensors[ITEM_VECTORS].dtype == np.float32:
        stepped = items_to_int8(model, f"bundle {source.path / MODEL}")
        tensors[ITEM_VECTORS], tensors[ITEM_SCALES] = quantize_rows(tensors[ITEM_VECTORS])
        resident[ITEM_VECTORS] = ResidentEntry("uint8", ZERO_POINT)
        resident[ITEM_SCALES] = ResidentEntry("float32", 0.0)
    elif not done:
        asked = " or ".join(kind for kind, on in (("item vectors", items), ("weights", weights)) if on)
        raise BundleError(
            f"bundle {source.path}: nothing to quantise: {source.manifest.name} has no {asked} in float32. "
            "Serve it as it is."
        )
    onnx.checker.check_model(model)
    return Small(model, tensors, resident, stepped)


def _write(beside: Path, source: Bundle, small: Small) -> Manifest:
    """The contents of the new bundle, and its manifest but for what `publish` sets."""
    manifest = source.manifest
    onnx.save(small.model, beside / MODEL)
    save_arrays(beside / ITEMS, {name: array[: manifest.items] for name, array in small.tensors.items()})
    shutil.copyfile(source.path / ITEM_ROWS, beside / ITEM_ROWS)
    if ITEM_SCALES not in small.tensors:  # else what the item encoder gives is of another type
        for name in {ITEM_ENCODER, CONTENT} & manifest.files.keys():
            shutil.copyfile(source.path / name, beside / name)
    save_arrays(beside / EXAMPLE, _example(beside, manifest, small))
    inputs = [tensor_entry(value) for value in small.model.graph.input]
    return msgspec.structs.replace(manifest, inputs=inputs, resident=small.resident)


def _example(beside: Path, manifest: Manifest, small: Small) -> Feeds:
    """Some users whose rows lie far from where a rounding tips, the one without history, and what the graph gives.

    Another CPU adds in another order: a row on the edge would come out one step away, its scores different by more
    than they may be, and the worker would refuse a good bundle.
    """
    codes = sorted(manifest.actions.values())
    rng = np.random.default_rng(0)
    feeds = random_feeds(rng, manifest.items, CANDIDATES, manifest.L, EXAMPLE_EXCLUDED, codes, manifest.kept)
    names = [value.name for value in small.model.graph.input]
    feeds = {name: feeds[name] for name in names if name in feeds}
    probe = beside / "probe.onnx"
    onnx.save(with_outputs(small.model, small.stepped), probe)
    session = create_session(probe)
    probe.unlink()
    tensors = {name: small.tensors[name] for name in names if name in small.tensors}
    margin_B = np.full(CANDIDATES, 0.5)
    for start in range(0, CANDIDATES if small.stepped else 0, SLICE):
        some = slice(start, start + SLICE)
        for steps_BD in session.run(small.stepped, {name: array[some] for name, array in feeds.items()} | tensors):
            margin_B[some] = np.minimum(margin_B[some], _margin(steps_BD))
    margin_B[-2] = 1  # the user without history, whose row no sum goes into
    chosen = np.sort(np.argsort(-margin_B, kind="stable")[:EXAMPLE_USERS])
    feeds = {name: array[chosen] for name, array in feeds.items()}
    given = [entry.name for entry in manifest.outputs]
    outputs = session.run(given, feeds | tensors)
    example = {f"input.{name}": array for name, array in feeds.items()}
    return example | {f"output.{name}": array for name, array in zip(given, outputs, strict=True)}


def _margin(steps_BD: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far a user's row is from the next half, at least: 0 to 0.5, float32 [B]."""
    return np.asarray(np.abs(steps_BD - np.floor(steps_BD) - np.float32(0.5)).min(axis=1))


def _test_events(settings: QuantizeSettings, source: Bundle, console: Console) -> tuple[Log, Ints]:
    """The log, its items as rows of the bundle, and the numbers of the events to rank."""
    data = dataset.load(settings)
    for line in data.lines:
        console.print(line)
    manifest = source.manifest
    shows_negatives = not NEGATIVE_ACTIONS.keys().isdisjoint(manifest.actions)
    actions = manifest.actions | NEGATIVE_ACTIONS
    log = Log.of(data.events, source.items.ids, actions, manifest.excluding_actions, shows_negatives)
    events_R = np.arange(first_test_event(len(log), settings.train_share), len(log))
    events_R = events_R[~log.negative_E[events_R]]
    if not len(events_R):
        raise DataError(f"{settings.events}: no event after the cut to rank. Take a smaller --train-share.")
    if not (log.item_E[events_R] >= 0).any():
        raise DataError(f"{settings.events}: the bundle knows no item of the events after the cut. Is it of this log?")
    return log, events_R[:: -(-len(events_R) // settings.test_events)]


def _print(console: Console, before: Bundle, after: Bundle, impact: Impact) -> None:
    events = f"{impact.events:,} test events of real users"
    table = Table(after.manifest.model, "before", "after", "change", title=events, title_justify="left")
    for file in (MODEL, ITEMS):
        sizes = [bundle.manifest.files[file].size for bundle in (before, after)]
        table.add_row(f"{file}, KiB", *(f"{size / 1024:,.0f}" for size in sizes), f"x {sizes[1] / sizes[0]:.2f}")
    for batch, (one, other) in impact.cpu_us.items():
        table.add_row(f"CPU µs a user, batch {batch}", f"{one:,.0f}", f"{other:,.0f}", f"x {other / one:.2f}")
    table.add_row(f"top-{impact.places} overlap", "", f"{impact.overlap:.3f}", "")
    ndcgs = (f"{ndcg:.4f}" for ndcg in impact.ndcg)
    table.add_row("NDCG@10", *ndcgs, f"{0 - impact.loss:+.2%}")
    low, high = impact.interval
    table.add_row("  after less before, 95 %", "", "", f"{low:+.4f} to {high:+.4f}")
    console.print(table)
