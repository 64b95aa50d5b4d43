"""Does a surer list hit more often? Scores are logits of no common scale; a list's own softmax makes them comparable.

Axes: R lists, K list length, G groups.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

GROUPS = 10


class Group(msgspec.Struct, frozen=True):
    """Lists of like confidence: how many, their mean confidence, and how often the first item was the one."""

    lists: int
    confidence: float
    accuracy: float


class Calibration(msgspec.Struct, frozen=True):
    """The groups, least confident first, and the expected calibration error (Guo et al., ICML 2017)."""

    error: float
    groups: list[Group]


def calibration(
    scores_RK: NDArray[np.float32], gains_RK: NDArray[np.bool_], targets_R: NDArray[np.int64]
) -> Calibration | None:
    """Of lists that hold their one target: is the first item it as often as the softmax of the list's scores says?

    The condition is what the listed scores can speak of: of items beyond place K they know nothing. Lists for
    everybody, whose scores are not published, and lists with several targets are left out.

    Args:
        scores_RK: NaN where a list ends, or where scores are not known.
        gains_RK: whether the item at each place is a target.
        targets_R: targets of each list.

    Returns:
        None if there are no such lists.
    """
    counts_R = np.isfinite(scores_RK[:, 0]) & gains_RK.any(axis=1) & (targets_R == 1)
    if not counts_R.any():
        return None
    scores_RK = np.where(np.isfinite(scores_RK[counts_R]), scores_RK[counts_R], -np.inf).astype(np.float64)
    confidence_R = 1 / np.exp(scores_RK - scores_RK[:, :1]).sum(axis=1)  # the softmax of the first
    first_R = gains_RK[counts_R, 0]
    order_R = np.argsort(confidence_R, kind="stable")
    groups = [
        Group(len(part), float(confidence_R[part].mean()), float(first_R[part].mean()))
        for part in np.array_split(order_R, GROUPS)
        if len(part)
    ]
    error = sum(group.lists * abs(group.confidence - group.accuracy) for group in groups) / len(order_R)
    return Calibration(error, groups)
