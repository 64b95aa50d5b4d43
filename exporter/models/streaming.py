"""A transformer that computes one position for a click, not the window: keys and values are kept for each user.

The blocks are SASRec's (Kang & McAuley 2018). An event sees itself and the W - 1 events before it, in each block
(sliding-window attention: Beltagy, Peters & Cohan, "Longformer", 2020), by a bias of how many events lie between
(Raffel et al., "T5", JMLR 2020), and not by its place in the history, which every event would change. So keys and
values never change once they are computed, and B blocks know of B (W - 1) + 1 events: W is chosen such that the history
holds as many, and what is rebuilt from it is what was kept.

Update rule: the new events' keys and values take the places of the oldest in a ring. Memory per user: S = B * 2 * R * D
floats of these, D of the newest event's hidden vector, 1 for where the ring begins. Cost per event: B blocks for one
position, and the ring's length in attention.

Axes: B users, L history length, M new events, R = W - 1 places of the ring, K = R + M keys, N items, D item dimension,
H attention heads, P positions that have a target.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporter.models.attention import (
    BLOCKS,
    GAP_EDGES_MS,
    HEADS,
    INITIAL_STD,
    Block,
    SelfAttentive,
    gap_steps,
    masked,
)
from exporter.models.base import Plan, Tensors, register


class Ring(NamedTuple):
    """What is known of the events in the ring, and of where the new ones go.

    Attributes:
        age_BR: int64, how many events are newer in the ring; 0 is the newest.
        is_event_BR: bool.
        place_BM: int64, of each new event; -1 of padding, and where a newer one will take it.
        begin_B: int64, the place of the next event.
    """

    age_BR: Tensor
    is_event_BR: Tensor
    place_BM: Tensor
    begin_B: Tensor


@register
class StreamingTransformer(SelfAttentive):
    """Only the new positions are computed."""

    name: ClassVar[str] = "streaming-transformer"

    def __init__(self, plan: Plan) -> None:
        """Initial weights from torch's current seed."""
        super().__init__(plan)
        self.dim = plan.dim
        self.width = self.sees = max(2, min(plan.window, (plan.length - 1) // BLOCKS + 1))  # W
        self.ring = self.width - 1
        self.window = BLOCKS * self.ring + 1
        self.vector_size = 2 * BLOCKS * self.ring * plan.dim + plan.dim + 1
        self.gaps_GD = nn.Parameter(torch.randn(len(GAP_EDGES_MS) + 2, plan.dim) * INITIAL_STD)
        self.distance_WH = nn.Parameter(torch.zeros(self.width, HEADS))
        self.reads = (  # type: ignore[misc]
            *("vector", "new_items", "history_items", "history_times"),
            *(("now",) if plan.repeats else ()),
        )

    def update(self, feeds: Tensors, items: Tensors) -> Tensor:
        """The new positions through all blocks, their keys and values into the ring."""
        new_BM, history_BL = feeds["new_items"], feeds["history_items"]
        count_B, new = (new_BM >= 0).sum(1), new_BM.shape[1]
        ring = self._ring(feeds, count_B)
        # The new events are the newest of the history; padded, so that there are M columns to take them from.
        times_BL = F.pad(feeds["history_times"], (new, 0))
        is_item_BL = F.pad(history_BL >= 0, (new, 0))
        step_BM = gap_steps(times_BL, is_item_BL)[:, history_BL.shape[1] :]
        x_BMD = self._embedded(new_BM, step_BM, items["item_vectors"])
        bias_BHMK = self._bias(ring, new_BM >= 0)
        is_at_BRM = (ring.place_BM[:, None] == torch.arange(self.ring, device=new_BM.device)[:, None]).float()
        is_kept_BR1 = 1 - is_at_BRM.sum(2, keepdim=True)
        kept = feeds["vector"][:, : -self.dim - 1].view(new_BM.shape[0], 2 * BLOCKS, self.ring, self.dim)
        rings = []
        for number, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            normed_BMD = block.attention_norm(x_BMD)
            both = []
            for place, fresh_BMD in enumerate(block.key_value(normed_BMD).chunk(2, dim=-1)):
                old_BRD = kept[:, 2 * number + place]
                rings.append(old_BRD * is_kept_BR1 + is_at_BRM @ fresh_BMD)
                both.append(torch.cat([old_BRD, fresh_BMD], dim=1))
            key_BKD, value_BKD = both
            x_BMD = block.attend(x_BMD, normed_BMD, key_BKD, value_BKD, bias_BHMK)
        vector_BS = torch.cat(
            [torch.stack(rings, 1).flatten(1), self.norm(x_BMD[:, -1]), ring.begin_B[:, None].float()], dim=1
        )
        return torch.where(count_B[:, None] > 0, vector_BS, feeds["vector"])

    def encode(self, feeds: Tensors, items: Tensors) -> Tensor:
        """The hidden vector of the newest event, float32 [B, D]."""
        is_user_B = feeds["history_items"][:, -1] >= 0
        return torch.where(is_user_B[:, None], feeds["vector"][:, -self.dim - 1 : -1], self.empty_D)

    def hidden(self, feeds: Tensors) -> Tensor:
        """Every position, each with the events that it would have in its rings."""
        history_BL, times_BL = feeds["history_items"], feeds["history_times"]
        is_item_BL, length = history_BL >= 0, history_BL.shape[1]
        x_BLD = self._embedded(history_BL, gap_steps(times_BL, is_item_BL), self.items_ND)
        place_L = torch.arange(length, device=history_BL.device)
        distance_LL = place_L[:, None] - place_L
        sees_BLL = (distance_LL >= 0) & (distance_LL < self.width) & is_item_BL[:, None]
        bias_BHLL = self._biases(distance_LL, sees_BLL)
        for block in self.blocks:
            x_BLD = block(x_BLD, bias_BHLL, last_only=False)
        return torch.where(is_item_BL[..., None], self.norm(x_BLD), self.empty_D)

    def _embedded(self, items_BM: Tensor, step_BM: Tensor, vectors_ND: Tensor) -> Tensor:
        x_BMD: Tensor = F.embedding(items_BM.clamp(min=0), vectors_ND) * self.scale
        x_BMD = self.dropout(x_BMD + F.embedding(step_BM, self.gaps_GD))
        return x_BMD * (items_BM >= 0)[..., None]

    def _ring(self, feeds: Tensors, count_B: Tensor) -> Ring:
        """The ring before the new events, which stand at the end of the history."""
        history_BL, new = feeds["history_items"], feeds["new_items"].shape[1]
        begin_B1 = feeds["vector"][:, -1:].long()
        age_BR = (begin_B1 - 1 - torch.arange(self.ring, device=history_BL.device)) % self.ring
        known_B1 = ((history_BL >= 0).sum(1) - count_B)[:, None]
        nth_BM = torch.arange(new, device=history_BL.device) - (new - count_B[:, None])
        stays_BM = (nth_BM >= 0) & (nth_BM >= count_B[:, None] - self.ring)
        place_BM = torch.where(stays_BM, (begin_B1 + nth_BM) % self.ring, -1)
        return Ring(age_BR, age_BR < known_B1, place_BM, (begin_B1[:, 0] + count_B) % self.ring)

    def _bias(self, ring: Ring, is_new_BM: Tensor) -> Tensor:
        """[B, H, M, K]: the new events see those in the ring, and one another, as far as the window reaches."""
        place_M = torch.arange(is_new_BM.shape[1], device=is_new_BM.device)
        # Of the new events only the real ones count: padding stands before them.
        nth_BM = place_M - (is_new_BM.shape[1] - is_new_BM.sum(1, keepdim=True))
        back_BMR = nth_BM[..., None] + 1 + ring.age_BR[:, None]
        back_BMM = (place_M[:, None] - place_M).expand(is_new_BM.shape[0], -1, -1)
        distance_BMK = torch.cat([back_BMR, back_BMM], 2)
        is_event_BK = torch.cat([ring.is_event_BR, is_new_BM], 1)
        sees_BMK = (distance_BMK >= 0) & (distance_BMK < self.width) & is_event_BK[:, None]
        return self._biases(distance_BMK, sees_BMK)

    def _biases(self, distance_BMK: Tensor, sees_BMK: Tensor) -> Tensor:
        """[B, H, M, K] of the events between."""
        bias_BMKH = F.embedding(distance_BMK.clamp(min=0, max=self.width - 1), self.distance_WH)
        return bias_BMKH.movedim(-1, -3) + masked(sees_BMK)[:, None]
