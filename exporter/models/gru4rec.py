"""GRU4Rec: a recurrent network whose hidden state is the user's vector; a click costs one step, not the window.

Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks", ICLR 2016, with full-softmax
cross-entropy (Hidasi & Karatzoglou 2018 show that the loss decides) and item embeddings tied between input and output.

Update: h' = GRU(h, item vector), for each new event. Memory: D floats a user (256 bytes at D = 64).
Cost: 6 D² multiply-adds an event, and N D for the scores.

Axes: B users, L history length, M new events, N items, D item dimension, S = D size of a user's vector.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporter.models.base import Plan, Recommender, Tensors, register
from exporter.models.gru import step_through

INITIAL_STD = 0.02


@register
class GRU4Rec(Recommender):
    """An item's score is the product of its vector with the projected hidden state, plus its bias."""

    name: ClassVar[str] = "gru4rec"
    reads: ClassVar[tuple[str, ...]] = ("vector", "new_items")

    def __init__(self, plan: Plan) -> None:
        """Initial weights from torch's current seed."""
        super().__init__()
        self.vector_size = plan.dim
        self.window = min(plan.window, plan.length)  # of training; served, it has seen all there was
        self.items_ND = nn.Parameter(torch.randn(plan.items, plan.dim) * INITIAL_STD)
        self.bias_N = nn.Parameter(torch.zeros(plan.items))
        self.scale = plan.dim**0.5
        self.gru = nn.GRU(plan.dim, plan.dim, batch_first=True)
        self.project = nn.Linear(plan.dim, plan.dim)
        self.dropout = nn.Dropout(plan.dropout)

    def item_tensors(self) -> dict[str, Tensor]:
        """Item vectors [N, D] and bias [N]."""
        return {"item_vectors": self.items_ND, "item_bias": self.bias_N}

    def update(self, feeds: Tensors, items: Tensors) -> Tensor:
        """One step of the GRU for each new event."""
        x_BMD, length_B = self._left_aligned(feeds["new_items"], items["item_vectors"])
        return step_through(self.gru, x_BMD, length_B, feeds["vector"])

    def encode(self, feeds: Tensors, items: Tensors) -> Tensor:
        """The projected hidden state; of a user without history its bias."""
        projected_BD: Tensor = self.project(feeds["vector"])
        return projected_BD

    def loss(self, feeds: Tensors, target_BL: Tensor) -> Tensor:
        """Cross-entropy of each position's next item among all N."""
        history_BL = feeds["history_items"]
        x_BLD, length_B = self._left_aligned(history_BL, self.items_ND)
        hidden_BLD, _ = self.gru(self.dropout(x_BLD))
        # Back to the right: the column before a user's first event has seen nothing, as have those before it.
        hidden_BLD = torch.cat([hidden_BLD.new_zeros(len(hidden_BLD), 1, hidden_BLD.shape[2]), hidden_BLD], 1)
        length = history_BL.shape[1]
        step_BL = (torch.arange(1, length + 1) - (length - length_B[:, None])).clamp(min=0)
        hidden_BLD = hidden_BLD.gather(1, step_BL[..., None].expand(-1, -1, hidden_BLD.shape[2]))
        has_target_BL = target_BL >= 0
        projected_PD = self.project(self.dropout(hidden_BLD[has_target_BL]))
        return F.cross_entropy(F.linear(projected_PD, self.items_ND, self.bias_N), target_BL[has_target_BL])

    def _left_aligned(self, items_BM: Tensor, vectors_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of right-aligned items, float32 [B, M, D], moved to the left; and how many there are, int64 [B]."""
        width = items_BM.shape[1]
        length_B = (items_BM >= 0).sum(1)
        place_BM = torch.arange(width, 2 * width, device=items_BM.device) - length_B[:, None]
        place_BM = torch.where(place_BM >= width, place_BM - width, place_BM)
        return F.embedding(items_BM.clamp(min=0).long().gather(1, place_BM), vectors_ND) * self.scale, length_B
