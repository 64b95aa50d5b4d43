"""The most popular items, the same for everybody: the baseline of every evaluation, and the smallest model there is.

Update rule: none; the counts are those of the log. Memory per user: none. Cost per event: none.

Axes: B users, N items, E events.
"""

from collections.abc import Iterable
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from exporter.histories import Log
from exporter.models.base import Plan, Recommender, Tensors, register
from exporter.models.tuning import best, ndcg_of, sample

# Half-lives of an event's weight, as shares of the log's span. None counts all the same, and wins where they are equal.
HALF_LIVES = (None, 1.0, 0.3, 0.1, 0.03, 0.01)


def log_counts(log: Log, items: int, half_life: float | None) -> Tensor:
    """float32 [N], log(1 + events), the newest events counting more and all together as much as without decay.

    Args:
        half_life: as a share of the time from the first event to the last; None for no decay.
    """
    item_E, time_E = log.item_E[log.wanted_E], log.time_E[log.wanted_E]
    weight_E = torch.ones(len(item_E), dtype=torch.float64)
    span = float(np.ptp(time_E)) if len(time_E) else 0.0
    if half_life and span:
        age_E = torch.from_numpy(time_E.max() - time_E).double()
        weight_E = 0.5 ** (age_E / (half_life * span))
        weight_E *= len(weight_E) / weight_E.sum()
    return torch.bincount(torch.from_numpy(item_E), weight_E, minlength=items).log1p().float()


@register
class Popularity(Recommender):
    """An item's score is the logarithm of its training events, plus one so that it stays finite."""

    name: ClassVar[str] = "popularity"
    reads: ClassVar[tuple[str, ...]] = ()

    bias_N: Tensor

    def __init__(self, plan: Plan) -> None:
        """Take the counts, without decay until `tune` finds one."""
        super().__init__()
        self.log, self.items = plan.log, plan.items
        self.half_life: float | None = None
        self.register_buffer("bias_N", log_counts(self.log, self.items, None))

    def item_tensors(self) -> dict[str, Tensor]:
        """The bias is all there is."""
        return {"item_bias": self.bias_N}

    def scores(self, feeds: Tensors, items: Tensors) -> Tensor:
        """The bias, once for each user, float32 [B, N]."""
        bias_N = items["item_bias"]
        return bias_N.expand(feeds["excluded_items"].shape[0], bias_N.shape[0])

    def tune(self, validation: Iterable[tuple[Tensors, Tensor]]) -> None:
        """The half-life."""
        batches = sample(validation)
        self._set(best(HALF_LIVES, lambda half_life: self._measure(half_life, batches), self.half_life))

    def adopt(self, tuned: Self) -> None:
        """The half-life."""
        self._set(tuned.half_life)

    def _measure(self, half_life: float | None, batches: list[tuple[Tensors, Tensor]]) -> float:
        self._set(half_life)
        return ndcg_of(lambda feeds: self.scores(feeds, self.item_tensors()), batches)

    def _set(self, half_life: float | None) -> None:
        self.half_life = half_life
        self.bias_N = log_counts(self.log, self.items, half_life)
