"""Beyond accuracy: which items the lists show, how much of the catalogue, how unlike one another, how unheard of.

Axes: R lists, K list length, N items, D dimensions, E events before the cut.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.histories import Ints

Floats = NDArray[np.floating[Any]]

SKETCH = 512  # dimensions of an item's hashed set of users
CHUNK = 1024  # lists at a time


def exposure(rows_RK: NDArray[np.int32], items: int) -> Ints:
    """int64 [N]: how many lists show each item."""
    return np.bincount(rows_RK[rows_RK >= 0], minlength=items)


def coverage(exposure_N: Ints) -> float:
    """Share of the catalogue that at least one list shows."""
    return float((exposure_N > 0).mean())


def gini(exposure_N: Ints) -> float:
    """Popularity bias: 0 if all items are shown alike, towards 1 if a few have all the lists (Gini 1912)."""
    n, total = len(exposure_N), exposure_N.sum()
    if not total:
        return 0.0
    place_N = np.arange(1, n + 1)
    return float(((2 * place_N - n - 1) * np.sort(exposure_N)).sum() / (n * total))


def lorenz(exposure_N: Ints, points: int = 101) -> NDArray[np.float64]:
    """float64 [points]: the share of all places on lists that the least shown 0 %, 1 % … 100 % of the items have."""
    shares = np.append(0, np.sort(exposure_N).cumsum()) / max(1, exposure_N.sum())
    grid = np.linspace(0, len(exposure_N), points)
    return np.asarray(np.interp(grid, np.arange(len(exposure_N) + 1), shares))


def novelty(rows_RK: NDArray[np.int32], count_N: Ints) -> NDArray[np.float64]:
    """float64 [R]: mean of -log2 of each listed item's share of the events before the cut (Zhou et al., PNAS 2010).

    One event is added to every item, so that one without any is very new, not infinitely.

    Args:
        count_N: events of each item before the cut.
    """
    bits_N = -np.log2((count_N + 1) / (count_N.sum() + len(count_N)))
    return _mean(np.append(bits_N, 0)[rows_RK], rows_RK >= 0)


def diversity(rows_RK: NDArray[np.int32], vectors_ND: Floats) -> NDArray[np.float64]:
    """float64 [R]: mean of 1 - cosine over the pairs of a list (Ziegler et al., WWW 2005); 0 for a list of one.

    The sum over pairs is that of the whole Gram matrix less its diagonal: |sum of unit vectors|^2 - (vectors).
    """
    length_N = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    units_ND = np.vstack([vectors_ND / np.maximum(length_N, 1e-12), np.zeros((1, vectors_ND.shape[1]))])
    square_N = (units_ND**2).sum(axis=1)
    mean_R = np.zeros(len(rows_RK))
    for start in range(0, len(rows_RK), CHUNK):
        rows = rows_RK[start : start + CHUNK]
        total = (units_ND[rows].sum(axis=1) ** 2).sum(axis=1) - square_N[rows].sum(axis=1)
        filled = (rows >= 0).sum(axis=1)
        pairs = filled * (filled - 1)
        mean_R[start : start + CHUNK] = np.where(pairs > 0, 1 - total / np.maximum(pairs, 1), 0)
    return mean_R


def co_occurrence(user_E: Ints, row_E: Ints, items: int) -> Floats:
    """float32 [N, SKETCH]: vectors whose cosine is about that of the items' sets of users.

    The same for every model, so that the diversity of two bundles can be compared. Count sketch (Charikar et al., ICALP
    2002): a user is one of 512 dimensions and a sign, drawn with a fixed seed; off by about 1 / sqrt(512).

    Args:
        user_E, row_E: user and item row of each event; rows of -1 are left out.
    """
    known_E = row_E >= 0
    pairs = np.unique(np.stack([user_E[known_E], row_E[known_E]]), axis=1)
    rng = np.random.default_rng(0)
    users = int(user_E.max(initial=-1)) + 1
    place_U, sign_U = rng.integers(0, SKETCH, users), rng.choice(np.array([-1.0, 1.0], np.float32), users)
    vectors_ND = np.zeros((items, SKETCH), np.float32)
    np.add.at(vectors_ND, (pairs[1], place_U[pairs[0]]), sign_U[pairs[0]])
    return vectors_ND


def _mean(values_RK: Floats, filled_RK: NDArray[np.bool_]) -> NDArray[np.float64]:
    mean_R: NDArray[np.float64] = np.where(filled_RK, values_RK, 0).sum(axis=1) / np.maximum(filled_RK.sum(axis=1), 1)
    return mean_R
