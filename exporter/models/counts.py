"""Counts of which items follow or accompany which, and the sparse rows that they become.

All of it is frozen at export: a live event moves the user's history, not the counts. What is wanted of them stands once
for each item, as its M strongest others, so that a graph gathers the rows of a history and adds them up.

Axes: B users, L history length, C newest columns of it, N items, M entries of a row, K list length, P pairs; with
entries in a line E of them, and then P addends.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from exporter.histories import Ints, Log

CHUNK = 10  # distances counted at once: bounds the memory to so many pairs an event


@dataclass(frozen=True, eq=False)
class Pairs:
    """How strongly a source item goes with a target item; each pair once, by source, then target.

    Attributes:
        source_P: int64.
        target_P: int64.
        weight_P: float64, above 0.
    """

    source_P: Ints
    target_P: Ints
    weight_P: NDArray[np.float64]


def pairs_within(log: Log, window: int, weight_of: Callable[[int], float], items: int) -> Pairs:
    """The weights of all pairs of a user's known events at most `window` apart, earlier to later, added up.

    Time and memory are those of `window` passes over the log.

    Args:
        weight_of: distance (1 = next) -> weight of the pair.
        items: N.
    """
    events = log.by_user[log.wanted_E[log.by_user]]
    item_E, user_E = log.item_E[events], log.user_E[events]
    sums = pl.DataFrame(schema={"key": pl.Int64, "weight": pl.Float64})
    for first in range(1, window + 1, CHUNK):
        chunk = [sums]
        for distance in range(first, min(first + CHUNK, window + 1)):
            same_P = user_E[distance:] == user_E[:-distance]
            key_P = (item_E[:-distance] * items + item_E[distance:])[same_P]
            chunk.append(pl.DataFrame({"key": key_P, "weight": np.full(len(key_P), float(weight_of(distance)))}))
        sums = pl.concat(chunk).group_by("key").agg(pl.col("weight").sum())
    sums = sums.sort("key")
    key_P = sums["key"].to_numpy()
    return Pairs(key_P // items, key_P % items, sums["weight"].to_numpy())


def both_ways(pairs: Pairs, items: int) -> Pairs:
    """Each pair's weight plus that of its reverse."""
    key_P = np.concatenate([pairs.source_P * items + pairs.target_P, pairs.target_P * items + pairs.source_P])
    unique_P, at_P = np.unique(key_P, return_inverse=True)
    weight_P = np.bincount(at_P, np.tile(pairs.weight_P, 2), len(unique_P)).astype(np.float64)
    return Pairs(unique_P // items, unique_P % items, weight_P)


def top_rows(pairs: Pairs, strength_P: NDArray[np.float64], items: int, most: int) -> tuple[Tensor, Tensor]:
    """The `most` strongest targets of every source, strongest first.

    Returns:
        rows_NM: int32, padding -1.
        weights_NM: float32, padding 0.
    """
    order_P = np.lexsort((-strength_P, pairs.source_P))
    source_P = pairs.source_P[order_P]
    rank_P = np.arange(len(source_P)) - np.searchsorted(source_P, source_P)
    order_P, source_P, rank_P = (each[rank_P < most] for each in (order_P, source_P, rank_P))
    rows_NM = np.full((items, most), -1, np.int32)
    weights_NM = np.zeros((items, most), np.float32)
    rows_NM[source_P, rank_P] = pairs.target_P[order_P]
    weights_NM[source_P, rank_P] = strength_P[order_P]
    return torch.from_numpy(rows_NM), torch.from_numpy(weights_NM)


def gathered(items_BCM: Tensor, added_BCM: Tensor, count: int, least: float = 0.0) -> Tensor:
    """Added up an item, from `least` on: float32 [B, N]."""
    scores_BN = added_BCM.new_full((added_BCM.shape[0], count), least)
    return scores_BN.scatter_add(1, items_BCM.flatten(1), added_BCM.flatten(1))


def gathered_once(items_BE: Tensor, added_BPE: Tensor) -> tuple[Tensor, Tensor]:
    """The same for the few items that have an entry, each once: nothing here is as long as the catalogue.

    Returns:
        items_BE: int64, every item of the entries once and then -1.
        sums_BPE: float32, added up an item and addend; 0 where there is none.
    """
    width = items_BE.shape[1]
    sorted_BE, order_BE = items_BE.sort(dim=1)
    is_new_BE = F.pad(sorted_BE[:, 1:] != sorted_BE[:, :-1], (1, 0), value=True)
    place_BE = is_new_BE.long().cumsum(1) - 1
    addend_BPE = added_BPE.gather(2, order_BE[:, None].expand_as(added_BPE))
    sums_BPE = torch.zeros_like(added_BPE).scatter_add(2, place_BE[:, None].expand_as(added_BPE), addend_BPE)
    once_BE = torch.zeros_like(sorted_BE).scatter(1, place_BE, sorted_BE)
    is_place_BE = torch.arange(width, device=items_BE.device) <= place_BE[:, -1:]
    return torch.where(is_place_BE, once_BE, -1), sums_BPE


def shares_of(items_BCM: Tensor, added_BCM: Tensor, top_BK: Tensor, count: int | None) -> Tensor:
    """What each column added to the items of a list, float32 [B, K, C].

    With the `count` of the catalogue the list is turned round, item -> place, so that every entry is looked up once;
    without it, all are compared with all K.
    """
    if count is None:
        is_named_BKCM = items_BCM[:, None] == top_BK[:, :, None, None]
        return (added_BCM[:, None] * is_named_BKCM).sum(-1)
    (users, columns, _), k = items_BCM.shape, top_BK.shape[1]
    place_BN = torch.full((users, count), k, dtype=torch.int64, device=top_BK.device)
    place_BN = place_BN.scatter(1, top_BK, torch.arange(k, device=top_BK.device).expand(users, k))
    place_BCM = place_BN.gather(1, items_BCM.flatten(1)).view_as(items_BCM)
    cell_BCM = place_BCM * columns + torch.arange(columns, device=top_BK.device)[:, None]
    shares = added_BCM.new_zeros(users, (k + 1) * columns)
    shares = shares.scatter_add(1, cell_BCM.flatten(1), added_BCM.flatten(1))
    return shares.view(users, k + 1, columns)[:, :k]
