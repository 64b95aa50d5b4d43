"""`manifest.json`: what a bundle holds and what its graph takes and gives (docs/formats.md).

The exporter writes it last, the worker reads it first. It is data only: no code, no pickle.

Axes: B users, L history length, M new events, X excluded items, S size of a user's vector, R places of a ring, E floats
of a place, N items, D item dimension, K list length.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_worker.errors import BundleError

SCHEMA = 1
MANIFEST = "manifest.json"
CURRENT = "current.json"
MODEL = "model.onnx"
ITEMS = "items.npz"
ITEM_ROWS = "items.jsonl"
EXAMPLE = "example.npz"
ITEM_ENCODER = "item_encoder.onnx"  # of a model that knows items by their content, with what makes features of it
CONTENT = "content.npz"
CONTENTS = (MODEL, ITEMS, ITEM_ROWS, EXAMPLE)

# The inputs that the worker knows how to feed (docs/formats.md, The graph), with their dtypes and axes.
FEEDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "history_items": ("int32", ("B", "L")),
    "history_actions": ("uint8", ("B", "L")),
    "history_times": ("int64", ("B", "L")),
    "now": ("int64", ("B",)),
    "vector": ("float32", ("B", "S")),
    "new_items": ("int32", ("B", "M")),
    "new_actions": ("uint8", ("B", "M")),
    "new_times": ("int64", ("B", "M")),
    "excluded_items": ("int32", ("B", "X")),
}
# What a graph keeps of a user besides `vector`: rings [B, R, E] of which the events of a run write single places.
RING = "ring_"
RING_PLACES = "ring_places"
RING_NEW = "_new"
INTEGERS = {name: np.iinfo(name) for name in ("int8", "uint8", "int16", "int32", "int64")}
REQUIRED_OUTPUTS = ("items", "scores")


class FileEntry(msgspec.Struct, frozen=True):
    """One file of the bundle: hex sha256 and size in bytes."""

    sha256: str
    size: int


class TensorEntry(msgspec.Struct, frozen=True):
    """One input or output of the graph; `shape` names the axes (`"B"`) or fixes them (`64`)."""

    name: str
    dtype: str
    shape: list[str | int]


class ResidentEntry(msgspec.Struct, frozen=True):
    """One resident tensor of items.npz, a row an item; `fill` is the value of a row that holds no item."""

    dtype: str
    fill: float | Literal["-inf"]

    @property
    def fill_value(self) -> float:
        """The fill as a float (JSON has no infinity)."""
        return float(self.fill)


class Buckets(msgspec.Struct, frozen=True):
    """The shapes the worker pads to on a GPU, ascending: users, history lengths, and new events (their last is L)."""

    batch: list[int]
    length: list[int]
    new: list[int]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of `manifest.json`."""

    schema: int
    model: str  # unique: name, time and content hash
    name: str  # the model's kind: sasrec, popularity …
    created: str  # RFC 3339, UTC
    opset: int
    files: dict[str, FileEntry]
    inputs: list[TensorEntry]
    outputs: list[TensorEntry]
    resident: dict[str, ResidentEntry]
    items: int  # N, rows of the item table
    L: int  # newest known events of a user that the graph looks at
    K: int  # items in a list
    D: int  # item dimension; 0 if the model has none
    S: int  # size of a user's vector, float32, which the graph updates; 0 if it keeps none
    actions: dict[str, int]  # action -> code 1..255; other actions are left out of the batch
    excluding_actions: list[str]  # an item with one of these is never recommended to the user again
    exclude_seen: bool  # whether any item of the history is left out of the list
    buckets: Buckets
    row_multiple: int = 1  # rows of the resident tensors in memory: a multiple of it, those added with their fill
    report: dict[str, float] = {}  # the key figures of the evaluation, such as {"hr@10": 0.19}

    @property
    def kept(self) -> dict[str, tuple[int, ...]]:
        """What the graph keeps of each user, float32: the shapes of its vector and rings, by name."""
        return {e.name: _sizes(e) for e in self.inputs if e.name == "vector" or e.name.startswith(RING)}

    @property
    def rows(self) -> int:
        """Rows of the resident tensors in memory: at least K, and a multiple of `row_multiple`."""
        return padded_rows(self.items, self.K, self.row_multiple)

    def padded(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """A resident tensor [N, …] with that many rows, those added with its fill."""
        padded = np.full((self.rows, *array.shape[1:]), self.resident[name].fill_value, array.dtype)
        padded[: len(array)] = array
        return padded


def padded_rows(items: int, k: int, multiple: int) -> int:
    """Rows of the item tensors of so many items; those added hold no item."""
    return -(-max(items, k) // multiple) * multiple


def sha256_of(path: Path) -> FileEntry:
    """Hash and size of a file, read in one pass."""
    with path.open("rb") as file:
        return FileEntry(hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write `manifest.json` whole or not at all."""
    _write_atomically(directory / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=2))


def set_current(models: Path, bundle: Path) -> None:
    """Make `current.json` of the directory of bundles name `bundle`, whole or not at all."""
    _write_atomically(models / CURRENT, msgspec.json.encode({"bundle": bundle.name}))


def find_bundle(path: Path) -> Path:
    """The bundle that `path` means: itself, or the one its `current.json` names.

    Raises:
        BundleError: there is neither a manifest nor a `current.json`.
    """
    if (path / MANIFEST).is_file():
        return path
    current = path / CURRENT
    if not current.is_file():
        raise BundleError(
            f"bundle {path}: no {MANIFEST} and no {CURRENT} there. Name a directory that `exporter train --out` wrote."
        )
    try:
        name = msgspec.json.decode(current.read_bytes(), type=dict[str, str])["bundle"]
    except (msgspec.MsgspecError, KeyError) as error:
        raise BundleError(f'bundle {current}: not of the form {{"bundle": NAME}} ({error}).') from error
    if name != Path(name).name or not (path / name / MANIFEST).is_file():
        raise BundleError(f"bundle {current}: names {name!r}, but {path / name / MANIFEST} is not there.")
    return path / name


def read_manifest(bundle: Path) -> Manifest:
    """Read and check the manifest, then the hash of every file it names.

    Raises:
        BundleError: the manifest is malformed or of another schema, or a file is absent or changed.
    """
    path = bundle / MANIFEST
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError) as error:
        raise BundleError(f"bundle {path}: {error}. Export it again.") from error
    problem = next(_problems(manifest), None)
    if problem:
        raise BundleError(f"bundle {path}: {problem}")
    for name, entry in manifest.files.items():
        _check_file(bundle / name, entry)
    return manifest


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read an .npz without pickle.

    Raises:
        BundleError: the file is not an archive of plain arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(f"bundle {path}: not an archive of plain arrays ({error}).") from error


def _problems(manifest: Manifest) -> Iterator[str]:
    """What is wrong with the manifest, the first problem first."""
    if manifest.schema != SCHEMA:
        yield f"schema {manifest.schema}, but this worker reads {SCHEMA}. Export it with the exporter of this version."
    missing = set(CONTENTS) - manifest.files.keys()
    if missing:
        yield f"files lacks {sorted(missing)}."
    if any(name != Path(name).name for name in manifest.files):
        yield "files names a path outside the bundle."
    yield from _graph_problems(manifest)
    if min(manifest.items, manifest.K, manifest.L) < 1:
        yield "items, K and L must be at least 1."
    if manifest.row_multiple < 1:
        yield "row_multiple must be at least 1."
    if not all(0 < code < 256 for code in manifest.actions.values()):
        yield "action codes must lie in 1..255."
    buckets = manifest.buckets
    for axis, sizes in (("batch", buckets.batch), ("length", buckets.length), ("new", buckets.new)):
        if not sizes or sizes[0] < 1 or sizes != sorted(set(sizes)):
            yield f"buckets.{axis} must be ascending and positive."
        elif axis != "batch" and sizes[-1] != manifest.L:
            yield f"the last of buckets.{axis} must be L = {manifest.L}."


def _graph_problems(manifest: Manifest) -> Iterator[str]:
    """What is wrong with the graph's inputs and outputs."""
    for entry in manifest.inputs:
        if entry.name not in FEEDS and entry.name not in manifest.resident and not entry.name.startswith(RING):
            yield f"the graph asks for {entry.name!r}, which this worker cannot feed. It feeds {sorted(FEEDS)}."
        if entry.name in FEEDS and entry.dtype != FEEDS[entry.name][0]:
            yield f"input {entry.name!r} is {entry.dtype}, but the contract says {FEEDS[entry.name][0]}."
    names = {entry.name for entry in manifest.outputs}
    if not names.issuperset(REQUIRED_OUTPUTS):
        yield f"the graph gives {sorted(names)}, but must give {list(REQUIRED_OUTPUTS)}."
    vectors = [e for e in (*manifest.inputs, *manifest.outputs) if e.name in ("vector", "updated_vector")]
    if any((entry.dtype, entry.shape) != ("float32", ["B", manifest.S]) for entry in vectors):
        yield f"vector and updated_vector must be float32 [B, S = {manifest.S}]."
    if len(vectors) != (2 if manifest.S else 0):
        yield "a graph that keeps a vector takes `vector`, gives `updated_vector`, and S is its size; else S is 0."
    yield from _ring_problems(manifest)
    for name, resident in manifest.resident.items():
        bounds, fill = INTEGERS.get(resident.dtype), resident.fill_value
        if bounds and not (fill.is_integer() and bounds.min <= fill <= bounds.max):
            yield f"the fill of resident tensor {name!r} is {resident.fill}, which no {resident.dtype} can be."
    if "item_bias" not in manifest.resident:
        yield "no resident tensor item_bias: without it no row can be hidden."


def _ring_problems(manifest: Manifest) -> Iterator[str]:
    """What is wrong with the rings: each takes new entries, and all of them at the same places."""
    given = {entry.name: (entry.dtype, entry.shape) for entry in manifest.outputs}
    rings = [entry for entry in manifest.inputs if entry.name.startswith(RING)]
    for ring in rings:
        if ring.dtype != "float32" or len(ring.shape) != 3 or len(_sizes(ring)) != 2:
            yield f"{ring.name} must be float32 [B, R, E], R and E numbers."
        elif given.get(f"{ring.name}{RING_NEW}") != ("float32", ["B", "M", ring.shape[2]]):
            yield f"{ring.name} needs an output {ring.name}{RING_NEW} float32 [B, M, {ring.shape[2]}]."
    if rings and not manifest.S:
        yield "a graph that keeps rings keeps a vector, too, which says how far they are."
    if rings and given.get(RING_PLACES) != ("int64", ["B", "M"]):
        yield f"a graph that keeps rings gives {RING_PLACES} int64 [B, M]."


def _sizes(entry: TensorEntry) -> tuple[int, ...]:
    """The axes of fixed size."""
    return tuple(axis for axis in entry.shape if isinstance(axis, int))


def _check_file(path: Path, entry: FileEntry) -> None:
    if path.is_symlink() or not path.is_file():
        raise BundleError(
            f"bundle {path}: the manifest names it, but it is not a plain file there. Copy the bundle whole."
        )
    found = sha256_of(path)
    if found != entry:
        raise BundleError(
            f"bundle {path}: changed since it was exported (sha256 {found.sha256[:12]}…, {found.size} bytes; "
            f"the manifest says {entry.sha256[:12]}…, {entry.size} bytes). Copy the bundle again."
        )


def _write_atomically(path: Path, content: bytes) -> None:
    beside = path.with_name(path.name + ".new")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)
