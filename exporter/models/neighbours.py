"""What rules and item-kNN share: one sparse row of other items for each item, weighted by how new the event is.

Axes: B users, L history length, C newest columns of it, N items, M entries of a row, K list length, P pairs.
"""

from abc import abstractmethod
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from exporter.models.base import Plan, Tensors
from exporter.models.counts import Pairs, top_rows
from exporter.models.parts import Part, ndcg_of_part
from exporter.models.tuning import Batches, best

COLUMNS = 8  # newest events whose rows are added up: 16 gain .0007 of NDCG@10 in a blend, and cost a fifth of its CPU
MOST = 64  # entries of a row
SMOOTHING = 20  # events; what was seen less often says little
SOURCE_DAMPING = 0.5
DAMPINGS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the target's popularity
DECAYS = (0.6, 0.7, 0.8, 0.9, 0.95)  # a column, from the newest backwards


class NeighbourPart(Part):
    """The rows of the newest events' items, added up.

    The strength of a -> b is pairs(a, b) / ((n(a) + s)^.5 * (n(b) + s)^damping): with damping .5 it is the cosine.

    Class attributes:
        prefix: of the item tensors, `item_{prefix}_rows` int32 [N, M] and `item_{prefix}_weights` float32 [N, M].
    """

    prefix: ClassVar[str]

    rows_NM: Tensor
    weights_NM: Tensor
    kernel_C: Tensor

    def __init__(self, plan: Plan) -> None:
        """Count the pairs."""
        super().__init__(plan)
        self.items, self.columns = plan.items, min(COLUMNS, plan.length)
        self.counts_N = plan.counts_N.numpy()
        self.pairs = self.count(plan)
        if not plan.repeats:  # an item's own row would only spend an entry on what is never listed
            other_P = self.pairs.source_P != self.pairs.target_P
            self.pairs = Pairs(*(each[other_P] for each in vars(self.pairs).values()))
        self.register_buffer("kernel_C", torch.empty(0))
        self.register_buffer("rows_NM", torch.empty(0))
        self.register_buffer("weights_NM", torch.empty(0))
        self.set(damping=0.4, decay=0.8)

    @abstractmethod
    def count(self, plan: Plan) -> Pairs:
        """The pairs of the plan's log."""

    def set(self, damping: float, decay: float) -> None:
        """Make rows and kernel of these knobs."""
        self.damping, self.decay = damping, decay
        weight_N = (self.counts_N + SMOOTHING).astype(np.float64)
        strength_P = self.pairs.weight_P * weight_N[self.pairs.source_P] ** -SOURCE_DAMPING
        strength_P *= weight_N[self.pairs.target_P] ** -damping
        self.rows_NM, self.weights_NM = top_rows(self.pairs, strength_P, self.items, min(MOST, self.items))
        self.kernel_C = decay ** torch.arange(self.columns, dtype=torch.float32)  # 0 is the newest event

    def tensors(self) -> dict[str, Tensor]:
        """The rows, strongest first, and their weights."""
        return {f"item_{self.prefix}_rows": self.rows_NM, f"item_{self.prefix}_weights": self.weights_NM}

    def entries(self, feeds: Tensors, items: Tensors) -> tuple[Tensor, Tensor]:
        """The rows of the newest C items, int64 and float32 [B, C, M]."""
        history_BC = feeds["history_items"][:, -self.columns :]
        weight_BC = self.kernel_C[: history_BC.shape[1]].flip(0) * (history_BC >= 0)
        at_BC = history_BC.clamp(min=0)
        items_BCM = F.embedding(at_BC, items[f"item_{self.prefix}_rows"])
        added_BCM = F.embedding(at_BC, items[f"item_{self.prefix}_weights"]) * weight_BC[..., None]
        return items_BCM.clamp(min=0).long(), added_BCM

    def tune(self, batches: Batches) -> None:
        """Damping, then decay."""
        damping = best(DAMPINGS, lambda damping: self._measure(damping, self.decay, batches), self.damping)
        self.set(damping, best(DECAYS, lambda decay: self._measure(damping, decay, batches), self.decay))

    def adopt(self, tuned: Self) -> None:
        """Damping and decay."""
        self.set(tuned.damping, tuned.decay)

    def _measure(self, damping: float, decay: float, batches: Batches) -> float:
        self.set(damping, decay)
        return ndcg_of_part(self, self.items, batches)
