"""SASRec: self-attention over the newest events of a user, each known by its item, its place and the time before it.

Kang & McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018; what differs is said in attention.py.

Update rule: the window is read anew for every list. Memory per user: the history. Cost per list: two blocks over the
window, of the last only the newest position.

Axes: B users, L history length, D item dimension.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporter.models.attention import BLOCKS, GAP_EDGES_MS, INITIAL_STD, Block, SelfAttentive, gap_steps, masked
from exporter.models.base import MASKED, Plan, Tensors, register

ACTION_CODES = 256


@register
class SASRec(SelfAttentive):
    """The whole window is computed each time; of the last block only the newest position."""

    name: ClassVar[str] = "sasrec"

    def __init__(self, plan: Plan) -> None:
        """Initial weights from torch's current seed."""
        super().__init__(plan)
        self.window = self.sees = min(plan.window, plan.length)
        self.positions_LD = nn.Parameter(torch.randn(self.window, plan.dim) * INITIAL_STD)  # 0 is the newest event
        self.gaps_GD = (
            nn.Parameter(torch.randn(len(GAP_EDGES_MS) + 2, plan.dim) * INITIAL_STD) if plan.time_gaps else None
        )
        self.actions_AD = (
            nn.Parameter(torch.randn(ACTION_CODES, plan.dim) * INITIAL_STD) if plan.action_embeddings else None
        )
        self.reads = (  # type: ignore[misc]
            "history_items",
            *(("history_actions",) if plan.action_embeddings else ()),
            *(("history_times",) if plan.time_gaps or plan.repeats else ()),
            *(("now",) if plan.repeats else ()),
        )

    def encode(self, feeds: Tensors, items: Tensors) -> Tensor:
        """The hidden vector of the newest event, float32 [B, D]."""
        return self._hidden(feeds, items["item_vectors"], last_only=True)[:, 0]

    def hidden(self, feeds: Tensors) -> Tensor:
        """Every position."""
        return self._hidden(feeds, self.items_ND, last_only=False)

    def _hidden(self, feeds: Tensors, vectors_ND: Tensor, last_only: bool) -> Tensor:
        """[B, L] to [B, L, D], or [B, 1, D] of the last position only, which is all that serving needs."""
        history_BL = feeds["history_items"][:, -self.window :]
        length = history_BL.shape[1]
        is_item_BL = history_BL >= 0
        x_BLD = F.embedding(history_BL.clamp(min=0), vectors_ND) * self.scale
        if self.gaps_GD is not None:
            x_BLD = x_BLD + F.embedding(gap_steps(feeds["history_times"][:, -self.window :], is_item_BL), self.gaps_GD)
        if self.actions_AD is not None:
            x_BLD = x_BLD + F.embedding(feeds["history_actions"][:, -self.window :].int(), self.actions_AD)
        x_BLD = self.dropout(x_BLD + self.positions_LD[:length].flip(0)) * is_item_BL[..., None]
        padding_B1L = masked(is_item_BL)[:, None]
        causal_LL = torch.ones(length, length, device=x_BLD.device).triu(1) * MASKED
        for number, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            if last_only and number == BLOCKS - 1:
                x_BLD = block.newest(x_BLD, padding_B1L)
            else:
                x_BLD = block(x_BLD, padding_B1L[:, None] + causal_LL)
        is_item_BL = is_item_BL[:, -1:] if last_only else is_item_BL
        return torch.where(is_item_BL[..., None], self.norm(x_BLD), self.empty_D)
