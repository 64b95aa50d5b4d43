"""Accuracy at k of lists: which of the places hold a target, and how many targets there were.

Exact for any k up to K, though the graph gives only the first K items: what stands further down is a miss at k either
way. With one target a list (prequential, leave-one-out) recall is the hit rate and MAP is MRR.
Axes: R lists, K list length, M figures.
"""

import numpy as np
from numpy.typing import NDArray

from exporter.histories import Ints

Floats = NDArray[np.float64]

NAMES = ("hr", "ndcg", "mrr", "precision", "recall", "f1", "map")


def accuracy(gains_RK: NDArray[np.bool_], targets_R: Ints, k: int) -> dict[str, Floats]:
    """Every figure of `NAMES` at k, for each list.

    NDCG with binary gains (Järvelin & Kekäläinen 2002); MAP over min(targets, k) (Manning et al. 2008, ch. 8).

    Args:
        gains_RK: whether the item at each place is a target.
        targets_R: targets of each list, at least 1, those that the list does not hold included.
        k: at most K.

    Returns:
        float64 [R] by name.
    """
    gains_Rk = gains_RK[:, :k]
    place_k = np.arange(1, k + 1)
    hits_R = gains_Rk.sum(axis=1)
    any_R = hits_R > 0
    most_R = np.minimum(targets_R, k)
    discount_k = 1 / np.log2(place_k + 1)
    precision_Rk = gains_Rk.cumsum(axis=1) / place_k
    return {
        "hr": any_R.astype(np.float64),
        "ndcg": gains_Rk @ discount_k / discount_k.cumsum()[most_R - 1],
        "mrr": np.where(any_R, 1 / (gains_Rk.argmax(axis=1) + 1), 0),
        "precision": hits_R / k,
        "recall": hits_R / targets_R,
        "f1": 2 * hits_R / (k + targets_R),  # the harmonic mean of hits / k and hits / targets
        "map": (precision_Rk * gains_Rk).sum(axis=1) / most_R,
    }
