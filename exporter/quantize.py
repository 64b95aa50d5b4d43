"""One run of `exporter quantize`: a bundle written anew in 8 or 16 bits, held to the lists that it gave before.

Axes: R ranked events.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec
import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

from exporter import dataset
from exporter.data import NEGATIVE_CODES, first_test_event
from exporter.experiment import EXCLUDED_LENGTH
from exporter.export import EXAMPLE_EXCLUDED, EXAMPLE_USERS, tensor_entry
from exporter.histories import Feeds, Horizon, Ints, Log
from exporter.impact import Impact, measure
from exporter.low_precision import items_to_float16, items_to_int8, weights_to_int8
from exporter.parity import random_feeds
from exporter.publish import publish, save_arrays
from exporter.settings import QuantizeSettings
from exporter.topk import BLOCK, CHUNK
from stream_worker.bundle import Bundle
from stream_worker.errors import BundleError, DataError, SettingsError
from stream_worker.inference import create_session
from stream_worker.low_precision import ITEM_HALVES, ITEM_SCALES, ITEM_STEPS, ZERO_POINT, low_precision_rows
from stream_worker.manifest import (
    CONTENT,
    EXAMPLE,
    ITEM_ENCODER,
    ITEM_ROWS,
    ITEMS,
    MODEL,
    Manifest,
    ResidentEntry,
    padded_rows,
)

INT8 = {ITEM_STEPS: ResidentEntry("uint8", ZERO_POINT), ITEM_SCALES: ResidentEntry("float32", 0.0)}
FLOAT16 = {ITEM_HALVES: ResidentEntry("float16", 0.0)}


@dataclass(frozen=True, eq=False)
class Small:
    """What takes the place of a bundle's graph and item tensors.

    Attributes:
        tensors: a row an item.
        row_multiple: what the worker pads them to.
        has_items: whether candidates are found in fewer bits than float32.
    """

    model: onnx.ModelProto
    tensors: Feeds
    resident: dict[str, ResidentEntry]
    row_multiple: int
    has_items: bool


def run(settings: QuantizeSettings, clock: Callable[[], datetime], console: Console) -> Path:
    """Quantise, measure, and write if the loss is small enough. Returns the new bundle's directory.

    Raises:
        BundleError: there is nothing to quantise, the graph is not understood, or its lists lose too much.
        DataError: no event is left to rank.
        SettingsError: flags that contradict one another, or an --out that cannot be written.
    """
    if settings.items_int8 and settings.items_float16:
        raise SettingsError("--items-int8 and --items-float16: choose one, 8 bits for a CPU or 16 for a GPU.")
    items = INT8 if settings.items_int8 else FLOAT16 if settings.items_float16 else None
    if items is None and not settings.weights_int8:
        raise SettingsError(
            "--no-weights-int8: nothing is left to quantise. Leave it out, or add --items-int8 or --items-float16."
        )
    source = Bundle(settings.bundle)
    source.require(settings.history_length, None)
    small = quantized(source, items, settings.weights_int8)
    if items and not small.has_items:
        console.print(f"{source.manifest.name} has more to a score than a product here: its items stay in float32.")
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
                f"{settings.max_loss:.2%}. Nothing is written. Try it with --no-weights-int8, or with items in float32."
            )

    try:
        return publish(settings.out, fill, clock(), approve)
    except OSError as error:
        raise SettingsError(f"--out {settings.out}: {error.strerror}. Name a directory that can be written.") from error


def quantized(source: Bundle, items: dict[str, ResidentEntry] | None, weights: bool) -> Small:
    """The bundle's graph with 8-bit weights, candidates from 8-bit or 16-bit items, or both.

    Args:
        source: the bundle.
        items: INT8, FLOAT16 or None: the tensors by which candidates are found.
        weights: whether the encoder's become 8 bits.

    Raises:
        BundleError: it has none of these.
    """
    manifest = source.manifest
    model = onnx.load(source.path / MODEL)
    tensors = {name: array[: manifest.items] for name, array in source.items.tensors.items()}
    resident, row_multiple = dict(manifest.resident), manifest.row_multiple
    done = weights_to_int8(model) if weights else 0
    block = min(BLOCK, padded_rows(manifest.items, manifest.K, CHUNK))
    has_items = False
    if items and tensors.keys().isdisjoint(INT8 | FLOAT16):
        has_items = items_to_int8(model, block) if items == INT8 else items_to_float16(model)
    if items and has_items:
        tensors |= low_precision_rows(tensors["item_vectors"], items)
        resident |= items
        row_multiple = block if items == INT8 else CHUNK
    elif not done:
        asked = " or ".join(kind for kind, on in (("product of items", items), ("weights", weights)) if on)
        raise BundleError(
            f"bundle {source.path}: nothing to quantise: {manifest.name} has no {asked} in float32. Serve it as it is."
        )
    onnx.checker.check_model(model)
    return Small(model, tensors, resident, row_multiple, has_items)


def _write(beside: Path, source: Bundle, small: Small) -> Manifest:
    """The contents of the new bundle, and its manifest but for what `publish` sets."""
    inputs = [tensor_entry(value) for value in small.model.graph.input]
    manifest = msgspec.structs.replace(
        source.manifest, inputs=inputs, resident=small.resident, row_multiple=small.row_multiple
    )
    onnx.save(small.model, beside / MODEL)
    save_arrays(beside / ITEMS, small.tensors)
    for name in {ITEM_ROWS, ITEM_ENCODER, CONTENT} & manifest.files.keys():
        shutil.copyfile(source.path / name, beside / name)
    save_arrays(beside / EXAMPLE, _example(beside, manifest, small.tensors))
    return manifest


def _example(beside: Path, manifest: Manifest, tensors: Feeds) -> Feeds:
    """A few users, one of them without history, and what the graph gives for them here."""
    codes = sorted(manifest.actions.values())
    rng = np.random.default_rng(0)
    feeds = random_feeds(rng, manifest.items, EXAMPLE_USERS, manifest.L, EXAMPLE_EXCLUDED, codes, manifest.kept)
    names = [entry.name for entry in manifest.inputs]
    feeds = {name: feeds[name] for name in names if name in feeds}
    padded = {name: manifest.padded(name, array) for name, array in tensors.items() if name in names}
    given = [entry.name for entry in manifest.outputs]
    outputs = create_session(beside / MODEL).run(given, feeds | padded)
    example = {f"input.{name}": array for name, array in feeds.items()}
    return example | {f"output.{name}": array for name, array in zip(given, outputs, strict=True)}


def _test_events(settings: QuantizeSettings, source: Bundle, console: Console) -> tuple[Log, Ints]:
    """The log, its items as rows of the bundle, and the numbers of the events to rank."""
    data = dataset.load(settings)
    for line in data.lines:
        console.print(line)
    manifest = source.manifest
    shows_negatives = not NEGATIVE_CODES.keys().isdisjoint(manifest.actions)
    actions = manifest.actions | NEGATIVE_CODES
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
