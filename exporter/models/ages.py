"""How old an event is, in steps on which it is worth the same."""

import torch
from torch import Tensor

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
# The first step is the same receipt, or second.
EDGES_MS = (1000, HOUR_MS, *(days * DAY_MS for days in (1, 3, 7, 14, 28, 56, 112)))
STEPS = len(EDGES_MS) + 1


def age_steps(age_ms: Tensor) -> Tensor:
    """int64, of the same shape: the step on which each age stands, 0..STEPS - 1."""
    return (age_ms[..., None] >= torch.tensor(EDGES_MS, device=age_ms.device)).sum(-1)
