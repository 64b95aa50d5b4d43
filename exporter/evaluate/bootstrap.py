"""Confidence intervals by resampling users (Efron & Tibshirani 1993): events of one user resemble one another, so the
user is what is drawn, with all of its lists. Axes: R lists, M figures, U users, S resamples.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from exporter.histories import Ints

Floats = NDArray[np.float64]

RESAMPLES = 1000
LEVEL = 0.95
CHUNK = 4_000_000  # weights in memory at once


class Interval(NamedTuple):
    """Means and the ends of their intervals, float64 [M] each."""

    mean_M: Floats
    low_M: Floats
    high_M: Floats


def intervals(values_RM: Floats, user_R: Ints, seed: int, resamples: int = RESAMPLES) -> Interval:
    """The mean of each figure over all lists, with its percentile interval.

    For the paired difference of two bundles give the differences, list by list: both sides see the same users.

    Args:
        values_RM: figures of each list.
        user_R: whose it is.
        seed: of the resamples.
    """
    user_R = np.unique(user_R, return_inverse=True)[1]
    users = int(user_R.max()) + 1
    count_U = np.bincount(user_R).astype(np.float64)
    sums_UM = np.stack([np.bincount(user_R, values_R, users) for values_R in values_RM.T], axis=1)
    rng = np.random.default_rng(seed)
    means_SM = np.empty((resamples, values_RM.shape[1]))
    step = max(1, CHUNK // users)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        weights_SU = rng.multinomial(users, np.full(users, 1 / users), size).astype(np.float64)
        means_SM[start : start + size] = weights_SU @ sums_UM / (weights_SU @ count_U)[:, None]
    low_M, high_M = np.quantile(means_SM, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return Interval(values_RM.mean(axis=0), low_M, high_M)
