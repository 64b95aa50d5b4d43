"""What models of self-attention share: the block, the time between events, and a score by product and pointer.

Kang & McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018, with full-softmax cross-entropy in place of one
sampled negative, pre-norm blocks, and item embeddings tied between input and output. Where items of the history may be
listed again, the model can also point at them (copying.py).

Axes: B users, L history length, N items, D item dimension, K list length, H attention heads, Q queries (L or 1),
P positions that have a target.
"""

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporter.models.base import MASKED, Plan, Recommender, Tensors
from exporter.models.copying import Copies, Copying
from exporter.models.sampled import sampled_softmax
from exporter.models.top import Named
from exporter.topk import DENSE_ITEMS

BLOCKS = 2
HEADS = 2
INITIAL_STD = 0.02
# The gap before an event falls between two of these: same receipt, minutes, hours, a day, a week, a month …
GAP_EDGES_MS = tuple(1000 * 4**power for power in range(13))


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

    def forward(self, x_BLD: Tensor, bias_BHLL: Tensor) -> Tensor:
        """[B, L, D] to [B, L, D].

        Args:
            bias_BHLL: float32, added to the attention scores of each head, or of all (H = 1): 0 to see, `MASKED` not
                to see.
        """
        normed_BLD = self.attention_norm(x_BLD)
        query_BHLd = _heads(_apply(self.query, normed_BLD))
        key_BHLd, value_BHLd = (_heads(x) for x in self.keys_and_values(normed_BLD))
        scores_BHLL = query_BHLd @ key_BHLd.transpose(-1, -2) / math.sqrt(query_BHLd.shape[-1])
        weights_BHLL = self.dropout((scores_BHLL + bias_BHLL).softmax(dim=-1))
        return self.finish(x_BLD, (weights_BHLL @ value_BHLd).transpose(1, 2).flatten(2))

    def newest(self, x_BLD: Tensor, bias_B1L: Tensor) -> Tensor:
        """The last position alone, as `forward` has it (but for dropout), [B, 1, D]: without anybody's key or value.

        For one query q the score of a key is q (Wk x + b) = (q Wk) x + q b, where q b is the same for all and does not
        count; and the weighted sum of values Wv x + b is Wv of the weighted sum of x, plus b.

        Args:
            bias_B1L: as there.
        """
        normed_BLD = self.attention_norm(x_BLD)
        dim = x_BLD.shape[2]
        key_HdD, value_HdD = self.key_value.weight.view(2, HEADS, dim // HEADS, dim)
        query_HBd = _apply(self.query, normed_BLD[:, -1:]).view(-1, HEADS, dim // HEADS).transpose(0, 1)
        query_BHD = (query_HBd @ key_HdD).transpose(0, 1) / math.sqrt(dim // HEADS)
        weights_BHL = (query_BHD @ normed_BLD.transpose(1, 2) + bias_B1L).softmax(dim=-1)
        seen_HBD = (weights_BHL @ normed_BLD).transpose(0, 1)
        attended_B1D = (seen_HBD @ value_HdD.transpose(1, 2)).transpose(0, 1).flatten(1)[:, None]
        return self.finish(x_BLD[:, -1:], attended_B1D + self.key_value.bias.chunk(2)[1])

    def keys_and_values(self, normed_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """Two products and not one that is then split: a split copies."""
        weights, biases = self.key_value.weight.chunk(2), self.key_value.bias.chunk(2)
        key_BLD, value_BLD = (flat(normed_BLD, w, b) for w, b in zip(weights, biases, strict=True))
        return key_BLD, value_BLD

    def finish(self, x_BQD: Tensor, attended_BQD: Tensor) -> Tensor:
        """The rest of the block, after attention, [B, Q, D]."""
        x_BQD = x_BQD + self.dropout(_apply(self.project, attended_BQD))
        hidden_BQD = self.dropout(F.relu(_apply(self.feed_in, self.feed_norm(x_BQD))))
        out_BQD: Tensor = x_BQD + self.dropout(_apply(self.feed_out, hidden_BQD))
        return out_BQD


def _apply(layer: nn.Linear, x_BQD: Tensor) -> Tensor:
    return flat(x_BQD, layer.weight, layer.bias)


def flat(x_BQD: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer over all positions as one matrix: ONNX Runtime then adds the bias within the product."""
    return F.linear(x_BQD.flatten(0, 1), weight, bias).view(x_BQD.shape[0], x_BQD.shape[1], weight.shape[0])


class SelfAttentive(Recommender):
    """The user's vector is the newest event's; an item's score is their product, plus the item's bias."""

    explains: ClassVar[bool] = True
    window: int  # of training
    sees: int  # newest events, of which `because` names one

    def __init__(self, plan: Plan) -> None:
        """Initial weights from torch's current seed."""
        super().__init__()
        self.scale = math.sqrt(plan.dim)
        self.items_ND = nn.Parameter(torch.randn(plan.items, plan.dim) * INITIAL_STD)
        self.bias_N = nn.Parameter(torch.zeros(plan.items))
        self.empty_D = nn.Parameter(torch.randn(plan.dim) * INITIAL_STD)  # the user without history, learned, too
        self.blocks = nn.ModuleList(Block(plan.dim, plan.dropout) for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(plan.dim)
        self.copying = Copying(plan.dim) if plan.repeats else None
        self.dropout = nn.Dropout(plan.dropout)
        self.sparse = plan.items > DENSE_ITEMS
        self.negatives = 0
        self._share_N = plan.counts_N.float() + 1  # so that an item without an event is drawn, too

    @abstractmethod
    def hidden(self, feeds: Tensors) -> Tensor:
        """The hidden vector after each position, [B, L, D], from the model's own item vectors: for training."""

    def item_tensors(self) -> dict[str, Tensor]:
        """Item vectors [N, D], and the bias [N]: what a history alone does not say about an item's popularity."""
        return {"item_vectors": self.items_ND, "item_bias": self.bias_N}

    def gains(self, feeds: Tensors, items: Tensors, user_BD: Tensor) -> Named | None:
        """What the pointer gives the items of the history."""
        if self.copying is None:
            return None
        copies = self._copies(feeds, items["item_vectors"], user_BD[:, None], feeds["now"][:, None])
        return Named(copies.rows_BQL[:, 0], copies.added_BQL[:, 0])

    def because(self, feeds: Tensors, items: Tensors, top_BK: Tensor) -> Tensor:
        """The history column whose item vector has the largest product with the recommended one's."""
        history_BL, vectors_ND = feeds["history_items"], items["item_vectors"]
        newest_BC = history_BL[:, -self.sees :]
        newest_BCD = F.embedding(newest_BC.clamp(min=0), vectors_ND)
        similarity_BKC = F.embedding(top_BK, vectors_ND) @ newest_BCD.transpose(1, 2)
        similarity_BKC = similarity_BKC + masked(newest_BC >= 0)[:, None]
        column_BK = similarity_BKC.argmax(dim=-1) + history_BL.shape[1] - newest_BC.shape[1]
        return torch.where(history_BL[:, -1:] >= 0, column_BK, -1)

    def loss(self, feeds: Tensors, target_BL: Tensor) -> Tensor:
        """Cross-entropy of each position's next item among all N, or among `negatives` drawn by popularity."""
        hidden_BLD = self.hidden(feeds)
        has_target_BL = target_BL >= 0
        hidden_PD, target_P = hidden_BLD[has_target_BL], target_BL[has_target_BL]
        copies: Copies | None = None
        if self.copying is not None:
            copied = self._copies(feeds, self.items_ND, hidden_BLD, feeds["history_times"])
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


def _heads(x_BQD: Tensor) -> Tensor:
    """[B, Q, D] to [B, H, Q, D / H]."""
    return x_BQD.view(*x_BQD.shape[:2], HEADS, x_BQD.shape[2] // HEADS).transpose(1, 2)


def gap_steps(times_BL: Tensor, is_item_BL: Tensor) -> Tensor:
    """int64 [B, L], 1 + the edges that the time since the event before reaches; 0 where the history starts.

    By comparison and not by logarithm, which torch and ONNX Runtime round differently.
    """
    gap_BL = times_BL - F.pad(times_BL[:, :-1], (1, 0))
    edges_G = torch.tensor(GAP_EDGES_MS, device=times_BL.device)
    bucket_BL = 1 + (gap_BL[..., None] >= edges_G).sum(-1)
    return torch.where(F.pad(is_item_BL[:, :-1], (1, 0)), bucket_BL, 0)


def masked(see: Tensor) -> Tensor:
    """0 where true, `MASKED` where false."""
    return (~see).float() * MASKED
