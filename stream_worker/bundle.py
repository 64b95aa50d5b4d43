"""The model directory, loaded: item table, graph, warm-up. It knows no model by name.

Axes: B users, N items, K list length.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from stream_worker.batch import NO_ITEM, Feeds, excluded_bucket
from stream_worker.content import Featuriser
from stream_worker.errors import BundleError, SettingsError
from stream_worker.inference import Device, Inference, create_session
from stream_worker.low_precision import low_precision_rows
from stream_worker.manifest import (
    EXAMPLE,
    ITEM_ENCODER,
    ITEM_ROWS,
    ITEMS,
    MODEL,
    Manifest,
    find_bundle,
    load_arrays,
    read_manifest,
)
from stream_worker.messages import item_hash
from stream_worker.vectors import nothing

PLACES_PER_ITEM = 8  # of the table of hashes, at least: then one item in sixteen finds its place taken
DEFAULT_BATCH = 32  # users of one inference, unless measured: where processors of today are near their best
SCORES_BYTES = 2**28  # of one batch, float32, when batch sizes are measured
MEASURED_RUNS = 5
OTHERS_BYTES = 2**25  # more than caches hold
WORTH = 0.98  # of the time a user, for which twice as many share an inference
TOLERANCE = 1e-4  # of scores: another CPU adds in another order

log = structlog.get_logger(__name__)


class ItemRow(msgspec.Struct):
    """A line of items.jsonl."""

    item: str
    title: str = ""
    attributes: dict[str, Any] = {}


class ItemTable:
    """The items of a model: ids, an index from hash to row, and the resident tensors.

    The tensors are padded with their fill (bias -inf, so never recommended) to at least K rows, since TopK fails on
    fewer, and to a multiple of what the manifest asks for.

    Raises:
        BundleError: the ids do not match the tensors, repeat, or two of them have the same hash.
    """

    def __init__(self, ids: list[str], tensors: Mapping[str, NDArray[Any]], manifest: Manifest, where: Path) -> None:
        if len(ids) != manifest.items:
            raise BundleError(f"bundle {where}: {ITEM_ROWS} has {len(ids)} rows, the manifest says {manifest.items}.")
        self.ids = ids
        self._names = np.array([*ids, None], object)  # so that row -1 has the name None
        self._hashes = np.fromiter((item_hash(item) for item in ids), np.uint64, len(ids))
        order = np.argsort(self._hashes, kind="stable").astype(np.int32)
        same = np.flatnonzero(np.diff(self._hashes[order]) == 0)
        if len(same):
            one, other = (ids[row] for row in order[same[0] : same[0] + 2])
            raise BundleError(
                f"bundle {where}: items {one!r} and {other!r} have the same 64-bit hash. Rename one of them."
            )
        # A hash table without chains: the low bits of a hash are its place there. The few rows whose place another one
        # has are found by bisection.
        places = 1 << (PLACES_PER_ITEM * len(ids) - 1).bit_length()
        self._mask = np.uint64(places - 1)
        self._table = np.zeros(places, np.int32)
        self._table[self._hashes & self._mask] = np.arange(len(ids))
        displaced = self._table[self._hashes[order] & self._mask] != order
        self._displaced = order[displaced]  # by hash
        self._displaced_hashes = self._hashes[self._displaced]
        self.tensors: Feeds = {}
        for name, entry in manifest.resident.items():
            array = tensors.get(name)
            if array is None or array.shape[:1] != (len(ids),) or array.dtype != entry.dtype:
                raise BundleError(
                    f"bundle {where}: {ITEMS} lacks {name!r}, or it is not {entry.dtype} with {len(ids)} rows."
                )
            self.tensors[name] = manifest.padded(name, array)

    def __len__(self) -> int:
        """Items the model knows."""
        return len(self.ids)

    def names(self, rows_BK: NDArray[Any]) -> list[list[Any]]:
        """The ids of these rows, None for -1 and for rows that hold no item."""
        names: list[list[Any]] = self._names[np.minimum(rows_BK, len(self.ids))].tolist()
        return names

    def rows_of(self, hashes: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Rows of these hashes, any shape; -1 where the model does not know the item."""
        rows: NDArray[np.int32] = self._table[hashes & self._mask]
        missed = self._hashes[rows] != hashes
        if missed.any():
            rows[missed] = self._rows_displaced(hashes[missed])
        return rows

    def _rows_displaced(self, hashes: NDArray[np.uint64]) -> NDArray[np.int32]:
        if not len(self._displaced):
            return np.full(len(hashes), NO_ITEM, np.int32)
        place = np.minimum(np.searchsorted(self._displaced_hashes, hashes), len(self._displaced) - 1)
        return np.where(self._displaced_hashes[place] == hashes, self._displaced[place], np.int32(NO_ITEM))


class Bundle:
    """A bundle in memory, ready to infer.

    Args:
        path: a bundle, or a directory of bundles with a current.json.
        device: where to run; "auto" takes CUDA if it works and logs which one it took.
        threads: intra-op threads on the CPU.
        cuda_graphs: see `Inference`.

    Raises:
        BundleError: the bundle is missing, changed or malformed, or the device is not usable.
    """

    def __init__(
        self,
        path: Path,
        device: Literal["auto", "cpu", "cuda"] = "cpu",
        threads: int = 1,
        cuda_graphs: bool = False,
    ) -> None:
        self.path = find_bundle(path)
        self.manifest = read_manifest(self.path)
        lines = (self.path / ITEM_ROWS).read_bytes().splitlines()
        try:
            decoder = msgspec.json.Decoder(ItemRow)
            self.rows = [decoder.decode(line) for line in lines]
        except msgspec.MsgspecError as error:
            raise BundleError(f"bundle {self.path / ITEM_ROWS}: {error}. Export it again.") from error
        self.items = ItemTable(
            [row.item for row in self.rows], load_arrays(self.path / ITEMS), self.manifest, self.path
        )
        self._inference = Inference(self.path / MODEL, self.items.tensors, device, threads, cuda_graphs)
        self.device: Device = self._inference.device
        self.feeds = self._inference.feeds
        # What batches are padded to. On the CPU any shape is as good as another one.
        self.buckets = self.manifest.buckets if self._inference.is_bound else None
        self.limit_batches(DEFAULT_BATCH)
        self._item_encoder: tuple[Featuriser, Any] | None = None
        self.default_list = np.empty(0, np.int32)  # rows of the list for everybody; known after warm_up

    def require(self, history_length: int, list_length: int | None) -> None:
        """Hold the settings to it.

        Raises:
            BundleError: it looks at more events than are kept.
            SettingsError: its lists are shorter than what is asked for.
        """
        manifest = self.manifest
        if history_length < manifest.L:
            raise BundleError(
                f"bundle {self.path}: looks at {manifest.L} events, but --history-length keeps "
                f"{history_length}. Raise it to {manifest.L} or more."
            )
        if list_length is not None and list_length > manifest.K:
            raise SettingsError(f"--list-length {list_length}: the bundle's lists have {manifest.K} items at most.")

    def encode_items(self, items: Sequence[ItemRow]) -> Feeds:
        """Rows of the resident tensors for items that training never saw, from their content.

        Returns:
            `item_vectors` float32 [n, D], `item_bias` float32 [n], and the vectors in 8 or 16 bits if the graph wants
            them.

        Raises:
            BundleError: the model does not know items by their content.
            DataError: an item lacks its precomputed vector.
        """
        if ITEM_ENCODER not in self.manifest.files:
            raise BundleError(f"bundle {self.path}: {self.manifest.name} knows no item by its content.")
        if self._item_encoder is None:
            session = create_session(self.path / ITEM_ENCODER)  # on the CPU, whatever the device: it is rarely used
            self._item_encoder = Featuriser.load(self.path), session
        featurise, session = self._item_encoder
        content_nF = featurise([(item.title, item.attributes) for item in items])
        vectors_nD, bias_n = session.run(["item_vectors", "item_bias"], {"content": content_nF})
        rows: Feeds = {"item_vectors": vectors_nD, "item_bias": bias_n}
        return rows | low_precision_rows(vectors_nD, self.manifest.resident)

    def infer(self, feeds: Feeds) -> Feeds:
        """Run the graph.

        Args:
            feeds: at least the graph's inputs other than the resident tensors.

        Returns:
            The outputs by name: `items` int64 [B, K], `scores` float32 [B, K], and what else the graph gives.
        """
        return self._inference.run(feeds)

    def limit_batches(self, users: int) -> None:
        """Put so many users into one inference at most."""
        self.largest_batch = min(users, self.manifest.buckets.batch[-1])

    def measure_batches(self) -> dict[int, float]:
        """Find out how many users one inference should take; sets `largest_batch`.

        Twice as many must be worth it: more wait for one another, and more of their histories are padding. Where the
        scores of so many users would take more than `SCORES_BYTES`, nothing is tried. As in a step, the processor's
        caches are full of other things before each run: that makes small batches dear.

        Returns:
            Microseconds of wall time a user, for each batch size that was tried, ascending.
        """
        buckets, best = self.manifest.buckets, 0
        us_of: dict[int, float] = {}
        others = np.zeros(OTHERS_BYTES, np.uint8)
        length = 1 if "new_items" in self.feeds else buckets.length[-1]
        for batch in buckets.batch:
            if batch > 1 and batch * len(self.items) * 4 > SCORES_BYTES:
                break
            feeds = _empty_feeds(batch, length, self.manifest.kept)
            for events in (name for name in feeds if name.endswith("_items") and not name.startswith("excluded")):
                feeds[events][:] = np.arange(feeds[events].size).reshape(batch, -1) % len(self.items)
            self.infer(feeds)
            seconds = []
            for _ in range(MEASURED_RUNS):
                others += 1
                start = time.perf_counter()
                self.infer(feeds)
                seconds.append(time.perf_counter() - start)
            us_of[batch] = min(seconds) / batch * 1e6
            if not best or us_of[batch] < WORTH * us_of[best]:
                best = batch
            elif batch >= 4 * best:
                break
        self.largest_batch = best
        return us_of

    def warm_up(self) -> float:
        """Compare the example with its expected outputs, then run every bucket once. Returns seconds taken.

        Raises:
            BundleError: the graph does not give here what it gave at export.
        """
        start = time.perf_counter()
        self.check_example()
        buckets = self.manifest.buckets
        for length in buckets.new if "new_items" in self.feeds else buckets.length:
            for batch in reversed([size for size in buckets.batch if size <= self.largest_batch]):
                outputs = self.infer(_empty_feeds(batch, length, self.manifest.kept))
        top = outputs["items"][0][np.isfinite(outputs["scores"][0])]
        self.default_list = top.astype(np.int32)
        return time.perf_counter() - start

    def check_example(self) -> None:
        """Replay example.npz.

        Raises:
            BundleError: an output differs from the one the exporter wrote.
        """
        example = load_arrays(self.path / EXAMPLE)
        feeds = {name.removeprefix("input."): array for name, array in example.items() if name.startswith("input.")}
        try:
            outputs = self.infer(feeds)
        except Exception as error:  # ONNX Runtime's own exceptions share no base but Exception
            raise BundleError(f"bundle {self.path / MODEL}: the graph does not run its example: {error}") from error
        wanted, found = example["output.scores"], outputs["scores"]
        finite = np.isfinite(wanted)
        if wanted.shape != found.shape or not np.array_equal(finite, np.isfinite(found)) or np.isnan(found).any():
            raise BundleError(f"bundle {self.path / EXAMPLE}: scores have another shape or are not finite here.")
        scale = np.maximum(1, np.abs(wanted[finite]))
        worst = float(np.max(np.abs(wanted[finite] - found[finite]) / scale, initial=0))
        if worst > TOLERANCE:
            raise BundleError(
                f"bundle {self.path / EXAMPLE}: scores differ by {worst:.2g} from those at export. "
                "Was it exported with another version of ONNX Runtime?"
            )


def _empty_feeds(batch: int, length: int, kept: Mapping[str, tuple[int, ...]]) -> Feeds:
    events: Feeds = {
        "items": np.full((batch, length), NO_ITEM, np.int32),
        "actions": np.zeros((batch, length), np.uint8),
        "times": np.zeros((batch, length), np.int64),
    }
    return {f"{prefix}_{name}": array for name, array in events.items() for prefix in ("history", "new")} | {
        "now": np.zeros(batch, np.int64),
        **nothing(kept, batch),
        "excluded_items": np.full((batch, excluded_bucket(length)), NO_ITEM, np.int32),
    }
