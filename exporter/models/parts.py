"""Parts of a score that need no training, and the model that one of them is by itself.

A part adds to the items' scores, and can say what each column of the history adds to an item: that is what `because`
names. Parts share a graph, so each names its item tensors after itself. `Counted` makes a model of one; hybrid.py
blends several with a sequence model.

Axes: B users, L history length, N items, K list length.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporter.models.base import Plan, Recommender, Tensors
from exporter.models.counts import gathered, shares_of
from exporter.models.tuning import Batches, ndcg_of, sample
from exporter.topk import DENSE_ITEMS

TINY = 1e-6
POPULARITY = 1e-6  # of log counts: decides among items that the part says nothing of


class Part(nn.Module, ABC):
    """One addend of a score, of counts that are frozen at export.

    Class attributes:
        reads: the feeds it uses.
        needs_repeats: whether it speaks only of items of the history, and is silent where those are not listed.
    """

    reads: ClassVar[tuple[str, ...]] = ("history_items",)
    needs_repeats: ClassVar[bool] = False

    def __init__(self, plan: Plan) -> None:
        """Count."""
        super().__init__()
        self.sparse = plan.items > DENSE_ITEMS

    def tensors(self) -> dict[str, Tensor]:
        """Its `item_*` tensors, [N, …]; none if it needs none."""
        return {}

    @abstractmethod
    def entries(self, feeds: Tensors, items: Tensors) -> tuple[Tensor, Tensor]:
        """What the newest C columns of the history add to which items.

        Returns:
            items_BCM: int64, rows, in 0..N-1.
            added_BCM: float32, at least 0; 0 where there is no entry.
        """

    def distribution(self, feeds: Tensors, items: Tensors) -> tuple[Tensor, Tensor]:
        """The entries, scaled to the sum 1 for each user; all 0 where the history says nothing."""
        items_BCM, added_BCM = self.entries(feeds, items)
        return items_BCM, added_BCM / total(added_BCM)

    def scores(self, feeds: Tensors, items: Tensors, least: float = 0.0) -> Tensor:
        """A distribution, float32 [B, N]: at least 0, with the sum 1, or 0 where the history says nothing.

        Args:
            least: added to all; nowhere cheaper than here.
        """
        return gathered(*self.distribution(feeds, items), items["item_bias"].shape[0], least)

    def shares(self, feeds: Tensors, items: Tensors, top_BK: Tensor) -> Tensor:
        """What each column of the history gives of that to the items of a list, float32 [B, K, L]."""
        count = None if self.sparse else items["item_bias"].shape[0]
        shares_BKC = shares_of(*self.distribution(feeds, items), top_BK, count)
        return F.pad(shares_BKC, (feeds["history_items"].shape[1] - shares_BKC.shape[2], 0))

    def tune(self, batches: Batches) -> None:
        """Choose its knobs on validation events."""

    def adopt(self, tuned: Self) -> None:
        """Take over the knobs."""


class Counted(Recommender):
    """A model of one part: its scores, and a trace of popularity for the items that it says nothing of."""

    explains: ClassVar[bool] = True
    part_type: ClassVar[type[Part]]

    bias_N: Tensor

    def __init__(self, plan: Plan) -> None:
        """Count."""
        super().__init__()
        self.part = self.part_type(plan)
        self.reads = self.part.reads  # type: ignore[misc]
        self.register_buffer("bias_N", POPULARITY * torch.log1p(plan.counts_N.float()))

    def item_tensors(self) -> dict[str, Tensor]:
        """The part's tensors, and the trace of popularity as the bias."""
        return {"item_bias": self.bias_N, **self.part.tensors()}

    def scores(self, feeds: Tensors, items: Tensors) -> Tensor:
        """float32 [B, N]."""
        return self.part.scores(feeds, items) + items["item_bias"]

    def because(self, feeds: Tensors, items: Tensors, top_BK: Tensor) -> Tensor:
        """The history column that adds most to the item's score; -1 if none adds to it."""
        return largest(self.part.shares(feeds, items, top_BK))

    def tune(self, validation: Iterable[tuple[Tensors, Tensor]]) -> None:
        """The part's knobs."""
        self.part.tune(sample(validation))

    def adopt(self, tuned: Self) -> None:
        """The part's knobs."""
        self.part.adopt(tuned.part)


def total(added_BCM: Tensor) -> Tensor:
    """The sum of a user's entries, float32 [B, 1, 1]; something above 0 where it is 0."""
    return added_BCM.sum((1, 2), keepdim=True).clamp(min=TINY)


def largest(shares_BKL: Tensor) -> Tensor:
    """The column with the largest share above 0, int64 [B, K]; -1 if there is none."""
    most_BK, column_BK = shares_BKL.max(dim=-1)
    return torch.where(most_BK > 0, column_BK, -1)


def ndcg_of_part(part: Part, items: int, batches: Batches) -> float:
    """NDCG@10 of the part alone, of so many items."""
    tensors = {"item_bias": torch.zeros(items), **part.tensors()}
    return ndcg_of(lambda feeds: part.scores(feeds, tensors), batches)
