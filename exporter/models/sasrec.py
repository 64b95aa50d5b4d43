"""SASRec: self-attention over the newest events of a user.

Kang & McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018, with full-softmax cross-entropy in place of one
sampled negative, pre-norm blocks, and item embeddings tied between input and output. Where items of the history may be
listed again, it can also point at them (copying.py).

Axes: B users, L history length, N items, D item dimension, K list length, H attention heads, Q queries (L or 1).
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporter.models.base import MASKED, Plan, Recommender, Tensors, register
from exporter.models.copying import Copies, Copying
from exporter.models.sampled import sampled_softmax

BLOCKS = 2
HEADS = 2
INITIAL_STD = 0.02
# The gap before an event falls between two of these: same receipt, minutes, hours, a day, a week, a month …
GAP_EDGES_MS = tuple(1000 * 4**power for power in range(13))
ACTION_CODES = 256


class Block(nn.Module):
    """One pre-norm transformer block, by hand: `nn.TransformerEncoder` does not export with a dynamic L."""

    def __init__(self, dim: int, dropout: float) -> None:
        """Weights for vectors of size `dim`."""
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.project = nn.Linear(dim, dim)
        self.feed_norm = nn.LayerNorm(dim)
        self.feed_in = nn.Linear(dim, dim)
        self.feed_out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BLD: Tensor, mask_BQL: Tensor, last_only: bool) -> Tensor:
        """[B, L, D] to [B, Q, D]; Q is 1, the last position, when `last_only`, else L.

        Args:
            mask_BQL: float32, added to the attention scores: 0 to see, `MASKED` not to see.
        """
        normed_BLD = self.attention_norm(x_BLD)
        x_BQD = x_BLD[:, -1:] if last_only else x_BLD
        query_BHQd = _heads(self.query(normed_BLD[:, -1:] if last_only else normed_BLD))
        key_BLD, value_BLD = self.key_value(normed_BLD).chunk(2, dim=-1)
        key_BHLd, value_BHLd = _heads(key_BLD), _heads(value_BLD)
        scores_BHQL = query_BHQd @ key_BHLd.transpose(-1, -2) / math.sqrt(query_BHQd.shape[-1])
        weights_BHQL = self.dropout((scores_BHQL + mask_BQL[:, None]).softmax(dim=-1))
        attended_BQD = (weights_BHQL @ value_BHLd).transpose(1, 2).flatten(2)
        x_BQD = x_BQD + self.dropout(self.project(attended_BQD))
        hidden_BQD = self.dropout(F.relu(self.feed_in(self.feed_norm(x_BQD))))
        out_BQD: Tensor = x_BQD + self.dropout(self.feed_out(hidden_BQD))
        return out_BQD


@register
class SASRec(Recommender):
    """The user's vector is the last position's; an item's score is their product, plus the item's bias."""

    name: ClassVar[str] = "sasrec"
    explains: ClassVar[bool] = True
    window: int

    def __init__(self, plan: Plan) -> None:
        """Initial weights from torch's current seed."""
        super().__init__()
        self.scale = math.sqrt(plan.dim)
        self.items_ND = nn.Parameter(torch.randn(plan.items, plan.dim) * INITIAL_STD)
        self.bias_N = nn.Parameter(torch.zeros(plan.items))
        self.window = min(plan.window, plan.length)
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
        self.empty_D = nn.Parameter(torch.randn(plan.dim) * INITIAL_STD)  # the user without history, learned, too
        self.blocks = nn.ModuleList(Block(plan.dim, plan.dropout) for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(plan.dim)
        self.copying = Copying(plan.dim) if plan.repeats else None
        self.dropout = nn.Dropout(plan.dropout)
        self.negatives = 0
        self._share_N = plan.counts_N.float() + 1  # so that an item without an event is drawn, too

    def item_tensors(self) -> dict[str, Tensor]:
        """Item vectors [N, D], and the bias [N]: what a history alone does not say about an item's popularity."""
        return {"item_vectors": self.items_ND, "item_bias": self.bias_N}

    def encode(self, feeds: Tensors, items: Tensors) -> Tensor:
        """The hidden vector of the newest event, float32 [B, D]."""
        return self._hidden(feeds, items["item_vectors"], last_only=True)[:, 0]

    def scores(self, feeds: Tensors, items: Tensors) -> Tensor:
        """All items by the product, those of the history by the pointer, too."""
        user_BD = self.encode(feeds, items)
        scores_BN = user_BD @ items["item_vectors"].T + items["item_bias"]
        if self.copying is None:
            return scores_BN
        copies = self._copies(feeds, items["item_vectors"], user_BD[:, None], feeds["now"][:, None])
        return scores_BN.scatter_add(1, copies.rows_BQL[:, 0], copies.added_BQL[:, 0])

    def because(self, feeds: Tensors, items: Tensors, top_BK: Tensor) -> Tensor:
        """The history column whose item vector has the largest product with the recommended one's."""
        history_BL = feeds["history_items"][:, -self.window :]
        vectors_ND = items["item_vectors"]
        history_BLD = F.embedding(history_BL.clamp(min=0), vectors_ND)
        similarity_BKL = F.embedding(top_BK, vectors_ND) @ history_BLD.transpose(1, 2)
        similarity_BKL = similarity_BKL + _masked(history_BL >= 0)[:, None]
        column_BK = similarity_BKL.argmax(dim=-1) + feeds["history_items"].shape[1] - history_BL.shape[1]
        return torch.where(history_BL[:, -1:] >= 0, column_BK, -1)

    def loss(self, feeds: Tensors, target_BL: Tensor) -> Tensor:
        """Cross-entropy of each position's next item among all N, or among `negatives` drawn by popularity."""
        hidden_BLD = self._hidden(feeds, self.items_ND, last_only=False)
        has_target_BL = target_BL >= 0
        hidden_PD, target_P = hidden_BLD[has_target_BL], target_BL[has_target_BL]
        copies: Copies | None = None
        if self.copying is not None:
            times_BL = feeds["history_times"]
            copied = self._copies(feeds, self.items_ND, hidden_BLD, times_BL)
            copies = Copies(copied.rows_BQL[has_target_BL], copied.added_BQL[has_target_BL])
        if self.negatives:
            return sampled_softmax(
                hidden_PD, target_P, self.items_ND, self.bias_N, self._share_N, self.negatives, copies
            )
        logits_PN = F.linear(hidden_PD, self.items_ND, self.bias_N)
        if copies is not None:
            logits_PN = logits_PN.scatter_add(1, *copies)
        return F.cross_entropy(logits_PN, target_P)

    def _copies(self, feeds: Tensors, vectors_ND: Tensor, hidden_BQD: Tensor, now_BQ: Tensor) -> Copies:
        """Of the window."""
        assert self.copying is not None
        history_BL = feeds["history_items"][:, -self.window :]
        items_BLD = F.embedding(history_BL.clamp(min=0), vectors_ND) * self.scale
        times_BL = feeds["history_times"][:, -self.window :]
        copies: Copies = self.copying(history_BL, items_BLD, times_BL, hidden_BQD, now_BQ)
        return copies

    def _hidden(self, feeds: Tensors, vectors_ND: Tensor, last_only: bool) -> Tensor:
        """[B, L] to [B, L, D], or [B, 1, D] of the last position only, which is all that serving needs."""
        history_BL = feeds["history_items"][:, -self.window :]
        length = history_BL.shape[1]
        is_item_BL = history_BL >= 0
        x_BLD = F.embedding(history_BL.clamp(min=0), vectors_ND) * self.scale
        if self.gaps_GD is not None:
            x_BLD = x_BLD + F.embedding(_gaps(feeds["history_times"][:, -self.window :], is_item_BL), self.gaps_GD)
        if self.actions_AD is not None:
            x_BLD = x_BLD + F.embedding(feeds["history_actions"][:, -self.window :].int(), self.actions_AD)
        x_BLD = self.dropout(x_BLD + self.positions_LD[:length].flip(0)) * is_item_BL[..., None]
        padding_B1L = _masked(is_item_BL)[:, None]
        causal_LL = torch.ones(length, length, device=x_BLD.device).triu(1) * MASKED
        for number, block in enumerate(self.blocks):
            last = last_only and number == BLOCKS - 1
            x_BLD = block(x_BLD, padding_B1L if last else padding_B1L + causal_LL, last)
        is_item_BL = is_item_BL[:, -1:] if last_only else is_item_BL
        return torch.where(is_item_BL[..., None], self.norm(x_BLD), self.empty_D)


def _heads(x_BQD: Tensor) -> Tensor:
    """[B, Q, D] to [B, H, Q, D / H]."""
    return x_BQD.view(*x_BQD.shape[:2], HEADS, x_BQD.shape[2] // HEADS).transpose(1, 2)


def _gaps(times_BL: Tensor, is_item_BL: Tensor) -> Tensor:
    """int64 [B, L], 1 + the edges that the time since the event before reaches; 0 where the history starts.

    By comparison and not by logarithm, which torch and ONNX Runtime round differently.
    """
    gap_BL = times_BL - F.pad(times_BL[:, :-1], (1, 0))
    edges_G = torch.tensor(GAP_EDGES_MS, device=times_BL.device)
    bucket_BL = 1 + (gap_BL[..., None] >= edges_G).sum(-1)
    return torch.where(F.pad(is_item_BL[:, :-1], (1, 0)), bucket_BL, 0)


def _masked(see: Tensor) -> Tensor:
    """0 where true, `MASKED` where false."""
    return (~see).float() * MASKED
