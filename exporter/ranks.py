"""Where does an item stand among all items? Full ranking, no sampled negatives.

Krichene & Rendle, "On Sampled Metrics for Item Recommendation", KDD 2020. Axes: B users, N items.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]


def ranks(scores_BN: Floats, target_B: Ints) -> NDArray[np.float64]:
    """float64 [B]: the rank of each target, infinite if it is -1 (no row) or its score -inf (excluded)."""
    score_B = scores_BN[np.arange(len(target_B)), target_B]
    higher_B = (scores_BN > score_B[:, None]).sum(axis=1)
    ties_B = (scores_BN == score_B[:, None]).sum(axis=1) - 1
    reachable_B = (target_B >= 0) & np.isfinite(score_B)
    return np.where(reachable_B, 1 + higher_B + ties_B / 2, np.inf)
