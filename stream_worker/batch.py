"""Touched users to the arrays that the graph asks for: known items only, sorted by length, sliced, padded.

Pure: arrays in, arrays out. Axes: B users, H history kept, L history the graph looks at, M new events, E excluded kept,
X excluded items fed.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stream_worker.manifest import Buckets
from stream_worker.state import Histories

NO_ITEM = -1
Feeds = dict[str, NDArray[Any]]


class ItemIndex(Protocol):
    """What a batch needs of the item table."""

    def rows_of(self, hashes: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Rows of these item hashes, of the same shape; -1 where the model does not know the item."""


@dataclass(frozen=True)
class Vocabulary:
    """What the model makes of the state's interned actions, by code.

    `model_codes` uint8: the manifest's code, 0 where the model does not know the action.
    `excluding` bool: whether an item with this action is never recommended again.
    """

    model_codes: NDArray[np.uint8]
    excluding: NDArray[np.bool_]

    @classmethod
    def of(cls, names: Sequence[str], actions: Mapping[str, int], excluding: Sequence[str]) -> "Vocabulary":
        """The vocabulary of a manifest for these interned names."""
        codes = np.array([actions.get(name, 0) for name in names] or [0], np.uint8)
        return cls(codes, np.array([name in excluding for name in names] or [False], np.bool_))


@dataclass(frozen=True)
class Prepared:
    """Users as the model sees them; right-aligned, padded with -1 (items) and 0 (actions, times)."""

    history_items_BL: NDArray[np.int32]
    history_actions_BL: NDArray[np.uint8]
    history_times_BL: NDArray[np.int64]  # epoch ms
    history_length_B: NDArray[np.intp]
    now_B: NDArray[np.int64]  # time of the user's newest event, known or not, epoch ms
    excluded_items_BX: NDArray[np.int32]
    excluded_length_B: NDArray[np.intp]
    new_length_B: NDArray[np.intp]  # of the history, the newest events that the kept vector has not seen
    rebuilt_B: NDArray[np.bool_]  # whether these are all of it, whatever was kept

    def reordered(self, order_B: NDArray[np.intp]) -> "Prepared":
        """The same users in another order."""
        return Prepared(*(getattr(self, one.name)[order_B] for one in fields(self)))


def prepare(
    histories: Histories,
    unseen_B: NDArray[np.int32],
    items: ItemIndex,
    vocabulary: Vocabulary,
    length: int,
    exclude_seen: bool,
) -> Prepared:
    """Translate states into the model's terms.

    Args:
        histories: the users.
        unseen_B: of each user's events, the newest that the kept vector has not seen.
        items: hash -> row.
        vocabulary: of the model, for the interned actions of the state.
        length: L, the newest known events that are kept.
        exclude_seen: whether every item of the history is excluded, not only those with an excluding action.
    """
    H = histories.items_BH.shape[1]
    filled_BH = np.arange(H) < histories.length_B[:, None]
    rows_BH = np.where(filled_BH, items.rows_of(histories.items_BH), np.int32(NO_ITEM))
    codes_BH = vocabulary.model_codes[histories.actions_BH]
    item_known_BH = rows_BH >= 0
    known_BH = item_known_BH & (codes_BH > 0)

    newest_B = np.maximum(histories.length_B - 1, 0)
    now_B = np.take_along_axis(histories.times_BH, newest_B[:, None], 1)[:, 0].astype(np.int64) * 1000
    now_B[histories.length_B == 0] = 0

    (items_BL, actions_BL, times_BL), length_B = right_align(
        known_BH,
        length,
        ((rows_BH, np.int32, NO_ITEM), (codes_BH, np.uint8, 0), (histories.times_BH, np.int64, 0)),
    )
    times_BL *= 1000

    seen_BH = item_known_BH if exclude_seen else item_known_BH & vocabulary.excluding[histories.actions_BH]
    E = int(histories.excluded_length_B.max(initial=0))
    kept_BE = np.arange(E) < histories.excluded_length_B[:, None]
    kept_rows_BE = np.where(kept_BE, items.rows_of(histories.excluded_items_BE[:, :E]), np.int32(NO_ITEM))
    kept_BE = (kept_rows_BE >= 0) & vocabulary.excluding[histories.excluded_actions_BE[:, :E]]
    (excluded_BX,), excluded_B = right_align(
        np.concatenate([seen_BH, kept_BE], 1),
        H + E,
        ((np.concatenate([rows_BH, kept_rows_BE], 1), np.int32, NO_ITEM),),
    )
    # Beyond L the graph could not see all that is new: then the vector starts again from the history.
    rebuilt_B = unseen_B > np.minimum(histories.length_B, length)
    unseen_BH = filled_BH & (np.arange(H) >= (histories.length_B - unseen_B)[:, None])
    new_B = np.where(rebuilt_B, length_B, np.minimum((known_BH & unseen_BH).sum(1), length_B))
    return Prepared(items_BL, actions_BL, times_BL, length_B, now_B, excluded_BX, excluded_B, new_B, rebuilt_B)


def right_align(
    keep_BH: NDArray[np.bool_], length: int, rows: Sequence[tuple[NDArray[Any], Any, int]]
) -> tuple[list[NDArray[Any]], NDArray[np.intp]]:
    """The last `length` kept places of each row, moved to the right, order unchanged.

    Args:
        keep_BH: the places to keep.
        length: L.
        rows: (array [B, H], dtype, padding) of each array to align.

    Returns:
        The arrays [B, L], and how many places of each row are filled [B].
    """
    length_B = keep_BH.sum(1)
    if length_B.max(initial=0) > length:
        from_right_BH = np.cumsum(keep_BH[:, ::-1], axis=1)[:, ::-1]  # 1 = the newest kept
        keep_BH = keep_BH & (from_right_BH <= length)
        length_B = np.minimum(length_B, length)
    filled_BL = np.arange(length) >= length - length_B[:, None]
    aligned = []
    for array_BH, dtype, padding in rows:
        array_BL = np.full(filled_BL.shape, padding, dtype)
        array_BL[filled_BL] = array_BH[keep_BH]  # both row after row, in order
        aligned.append(array_BL)
    return aligned, length_B


def slices(
    prepared: Prepared, buckets: Buckets | None, wanted: Container[str], largest: int
) -> Iterator[tuple[NDArray[np.intp], Feeds]]:
    """Cut users into batches of like length, and pad each to its longest, or to a bucket.

    Sorting first makes the padding small: a batch costs its longest history, or its most new events, where the graph
    looks at these. So vectors that are rebuilt share no batch with many that are only updated.

    Args:
        prepared: the users.
        buckets: the sizes that arrays may have; None for any.
        wanted: names of the feeds that the graph takes.
        largest: users of a batch.

    Yields:
        The users of the batch as indices into `prepared`, and the feeds but for what is kept of users, whose rows
        beyond these users are padding.
    """
    new = "new_items" in wanted
    order_B = np.argsort(prepared.new_length_B if new else prepared.history_length_B, kind="stable")
    one = prepared.reordered(order_B)
    for start in range(0, len(order_B), largest):
        some = slice(start, start + largest)
        batch = _bucket(len(order_B[some]), buckets.batch if buckets else None)
        excluded = excluded_bucket(int(one.excluded_length_B[some].max()))
        feeds = {
            "now": _pad(one.now_B[some, None], batch, 1, 0)[:, 0],
            "excluded_items": _pad(one.excluded_items_BX[some], batch, excluded, NO_ITEM),
        }
        events: dict[str, tuple[NDArray[Any], int]] = {
            "items": (one.history_items_BL[some], NO_ITEM),
            "actions": (one.history_actions_BL[some], 0),
            "times": (one.history_times_BL[some], 0),
        }
        length = _bucket(int(one.history_length_B[some].max()), buckets.length if buckets else None)
        for name, (array_bL, padding) in events.items():
            if name == "items" or f"history_{name}" in wanted:  # the items say what `because` points at
                feeds[f"history_{name}"] = _pad(array_bL, batch, length, padding)
        if new:
            length = _bucket(int(one.new_length_B[some].max()), buckets.new if buckets else None)
            is_new_bM = np.arange(length) >= length - one.new_length_B[some, None]
            for name, (array_bL, padding) in events.items():
                array_bM = _pad(array_bL, len(array_bL), length, padding)
                feeds[f"new_{name}"] = _pad(
                    np.where(is_new_bM, array_bM, array_bM.dtype.type(padding)), batch, length, padding
                )
        yield order_B[some], feeds


def excluded_bucket(length: int) -> int:
    """X for so many excluded items: the next power of two, at least 8."""
    return max(8, 1 << (length - 1).bit_length()) if length else 8


def _bucket(size: int, buckets: Sequence[int] | None) -> int:
    if buckets is None:
        return max(size, 1)
    return next(bucket for bucket in buckets if bucket >= size)


def _pad(array_bL: NDArray[Any], batch: int, length: int, padding: int) -> NDArray[Any]:
    """The last `length` columns as a contiguous [batch, length], the array itself if it is that."""
    newest_bL = array_bL[:, max(0, array_bL.shape[1] - length) :]
    if newest_bL.shape == (batch, length):
        return np.ascontiguousarray(newest_bL)
    padded = np.full((batch, length), padding, array_bL.dtype)
    padded[: len(newest_bL), length - newest_bL.shape[1] :] = newest_bL
    return padded
