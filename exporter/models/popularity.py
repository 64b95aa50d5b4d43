"""The most popular items, the same for everybody: the baseline of every evaluation, and the smallest model there is.

Axes: B users, N items.
"""

from typing import ClassVar

import torch
from torch import Tensor

from exporter.models.base import Plan, Recommender, Tensors, register


@register
class Popularity(Recommender):
    """An item's score is the logarithm of its training events, plus one so that it stays finite."""

    name: ClassVar[str] = "popularity"
    reads: ClassVar[tuple[str, ...]] = ()

    bias_N: Tensor

    def __init__(self, plan: Plan) -> None:
        """Take the counts."""
        super().__init__()
        self.register_buffer("bias_N", torch.log1p(plan.counts_N.float()))

    def item_tensors(self) -> dict[str, Tensor]:
        """The bias is all there is."""
        return {"item_bias": self.bias_N}

    def scores(self, feeds: Tensors, items: Tensors) -> Tensor:
        """The bias, once for each user, float32 [B, N]."""
        bias_N = items["item_bias"]
        return bias_N.expand(feeds["excluded_items"].shape[0], bias_N.shape[0])
