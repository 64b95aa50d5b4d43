"""Item vectors in 8 bits, by which the graph of `exporter quantize --items-int8` finds the candidates of a list.

Axes: N items, D item dimension.
"""

import numpy as np
from numpy.typing import NDArray

ITEM_STEPS, ITEM_SCALES = "item_steps", "item_scales"
ZERO_POINT = 128  # of the steps: the value of a row that holds no item
MOST = 127
TINY = 1e-12  # a row of zeros has a scale, too


def quantize_rows(vectors_ND: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Steps uint8 [N, D] and scales float32 [N]: a vector is about (step - 128) * scale."""
    scale_N = np.abs(vectors_ND).max(axis=1) / np.float32(MOST)
    steps_ND = np.rint(vectors_ND / np.maximum(scale_N, np.float32(TINY))[:, None])
    return (steps_ND + ZERO_POINT).astype(np.uint8), scale_N.astype(np.float32)
