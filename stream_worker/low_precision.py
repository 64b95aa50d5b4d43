"""Item vectors in 8 or 16 bits, by which a graph of `exporter quantize` finds the candidates of a list.

Axes: N items, D item dimension.
"""

from collections.abc import Container
from typing import Any

import numpy as np
from numpy.typing import NDArray

ITEM_STEPS, ITEM_SCALES = "item_steps", "item_scales"
ITEM_HALVES = "item_halves"
ZERO_POINT = 128  # of the steps: the value of a row that holds no item
MOST = 127
TINY = 1e-12  # where all is zero there is a scale, too


def low_precision_rows(vectors_ND: NDArray[np.float32], wanted: Container[str]) -> dict[str, NDArray[Any]]:
    """Those of these tensors that are wanted.

    Returns:
        `item_steps` uint8 [N, D] and `item_scales` float32 [N]: a vector is about (step - 128) * scale;
        `item_halves` float16 [N, D].
    """
    rows: dict[str, NDArray[Any]] = {}
    if ITEM_STEPS in wanted:
        scale_N = np.abs(vectors_ND).max(axis=1) / np.float32(MOST)
        steps_ND = np.rint(vectors_ND / np.maximum(scale_N, np.float32(TINY))[:, None])
        rows[ITEM_STEPS], rows[ITEM_SCALES] = (steps_ND + ZERO_POINT).astype(np.uint8), scale_N.astype(np.float32)
    if ITEM_HALVES in wanted:
        rows[ITEM_HALVES] = vectors_ND.astype(np.float16)
    return rows
