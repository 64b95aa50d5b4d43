"""A transformer that computes one position for a click, not the window: keys and values are kept for each user.

The blocks are SASRec's (Kang & McAuley 2018). An event sees itself and the W - 1 events before it, in each block
(sliding-window attention: Beltagy, Peters & Cohan, "Longformer", 2020), by a bias of how many events lie between
(Raffel et al., "T5", JMLR 2020), and not by its place in the history, which every event would change. So keys and
values never change once they are computed, and B blocks know of B (W - 1) + 1 events: W is chosen such that the history
holds as many, and what is rebuilt from it is what was kept (where L known events are in it).

Update rule: the new events' keys and values take the places of the oldest in rings, which the worker keeps: the graph
gives the new ones alone. Memory per user: R places in each of 2 B rings of D floats, and a vector of the newest event's
hidden state and where the rings go on. Cost per event: B blocks for one position, and the rings' length in attention.

Axes: B users, L history length, M new events, R = W - 1 places of a ring, K = R + M keys, D item dimension, H attention
heads.
"""

import math
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
from stream_worker.errors import SettingsError
from stream_worker.manifest import RING_NEW, RING_PLACES

KEYS = tuple(f"ring_keys_{number}" for number in range(BLOCKS))
VALUES = tuple(f"ring_values_{number}" for number in range(BLOCKS))


class Ring(NamedTuple):
    """What is known of the events in the ring, and of where the new ones go.

    Attributes:
        age_BR: int64, how many events are newer in the ring; 0 is the newest.
        is_event_BR: bool.
        place_BM: int64, of each new event; R of padding, and where a newer one will take it.
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

    head_HD: Tensor

    def __init__(self, plan: Plan) -> None:
        """Initial weights from torch's current seed.

        Raises:
            SettingsError: the history is shorter than what its blocks see.
        """
        if plan.length <= BLOCKS:
            raise SettingsError(f"--length {plan.length}: streaming-transformer looks at {BLOCKS + 1} events at least.")
        super().__init__(plan)
        self.dim = plan.dim
        self.width = self.sees = max(2, min(plan.window, (plan.length - 1) // BLOCKS + 1))  # W
        self.ring = self.width - 1
        self.window = BLOCKS * self.ring + 1
        self.vector_size = plan.dim + 1
        self.rings = dict.fromkeys((*KEYS, *VALUES), (self.ring, plan.dim))
        head_HD = torch.eye(HEADS).repeat_interleave(plan.dim // HEADS, 1)
        self.register_buffer("head_HD", head_HD, persistent=False)  # 1 where a dimension belongs to a head
        self.gaps_GD = nn.Parameter(torch.randn(len(GAP_EDGES_MS) + 2, plan.dim) * INITIAL_STD)
        self.distance_WH = nn.Parameter(torch.zeros(self.width, HEADS))
        self.reads = (  # type: ignore[misc]
            *("vector", *self.rings, "new_items", "history_items", "history_times"),
            *(("now",) if plan.repeats else ()),
        )

    def updated(self, feeds: Tensors, items: Tensors) -> Tensors:
        """The new positions through all blocks; their keys and values, and the places that these take."""
        new_BM, history_BL, vector_BS = feeds["new_items"], feeds["history_items"], feeds["vector"]
        is_new_BM, new = new_BM >= 0, new_BM.shape[1]
        count_B = is_new_BM.sum(1)
        ring = self._ring(history_BL, count_B, vector_BS[:, self.dim], new)
        x_BMD = self._embedded(new_BM, self._new_steps(feeds, new), items["item_vectors"])
        bias_BHMK = self._bias(ring, is_new_BM)
        fresh = {RING_PLACES: ring.place_BM}
        for block, keys, values in zip(self.blocks, KEYS, VALUES, strict=True):
            assert isinstance(block, Block)
            normed_BMD = block.attention_norm(x_BMD)
            key_BMD, value_BMD = block.keys_and_values(normed_BMD)
            attended_BMD = self._attended(
                block.query(normed_BMD), (feeds[keys], key_BMD), (feeds[values], value_BMD), bias_BHMK
            )
            x_BMD = block.finish(x_BMD, attended_BMD)
            fresh |= {f"{keys}{RING_NEW}": key_BMD, f"{values}{RING_NEW}": value_BMD}
        hidden_BD = torch.where(count_B[:, None] > 0, self.norm(x_BMD[:, -1]), vector_BS[:, : self.dim])
        return {**feeds, **fresh, "vector": torch.cat([hidden_BD, ring.begin_B[:, None].float()], 1)}

    def encode(self, feeds: Tensors, items: Tensors) -> Tensor:
        """The hidden vector of the newest event, float32 [B, D]."""
        is_user_B = feeds["history_items"][:, -1] >= 0
        return torch.where(is_user_B[:, None], feeds["vector"][:, : self.dim], self.empty_D)

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
            x_BLD = block(x_BLD, bias_BHLL)
        return torch.where(is_item_BL[..., None], self.norm(x_BLD), self.empty_D)

    def _embedded(self, items_BM: Tensor, step_BM: Tensor, vectors_ND: Tensor) -> Tensor:
        x_BMD: Tensor = F.embedding(items_BM.clamp(min=0), vectors_ND) * self.scale
        x_BMD = self.dropout(x_BMD + F.embedding(step_BM, self.gaps_GD))
        return x_BMD * (items_BM >= 0)[..., None]

    def _new_steps(self, feeds: Tensors, new: int) -> Tensor:
        """int64 [B, M]: the gaps before the new events, which are the newest of the history."""
        # One more column for the gap before the first; padded, so that there are as many.
        times_BM = F.pad(feeds["history_times"], (new + 1, 0))[:, -new - 1 :]
        is_item_BM = F.pad(feeds["history_items"] >= 0, (new + 1, 0))[:, -new - 1 :]
        return gap_steps(times_BM, is_item_BM)[:, 1:]

    def _ring(self, history_BL: Tensor, count_B: Tensor, begin_B: Tensor, new: int) -> Ring:
        """The ring before the new events, which stand at the end of the history."""
        begin_B1, count_B1 = begin_B.long()[:, None], count_B[:, None]
        age_BR = (begin_B1 - 1 - torch.arange(self.ring, device=history_BL.device)) % self.ring
        known_B1 = (history_BL >= 0).sum(1, keepdim=True) - count_B1
        nth_BM = torch.arange(new, device=history_BL.device) - (new - count_B1)
        stays_BM = (nth_BM >= 0) & (nth_BM >= count_B1 - self.ring)
        place_BM = torch.where(stays_BM, (begin_B1 + nth_BM) % self.ring, self.ring)
        return Ring(age_BR, age_BR < known_B1, place_BM, (begin_B1[:, 0] + count_B) % self.ring)

    def _attended(
        self, query_BMD: Tensor, keys: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor], bias_BHMK: Tensor
    ) -> Tensor:
        """Attention over the ring's keys and values and the new ones, [B, M, D].

        The ring is neither joined with the new ones nor turned by heads: a query is 0 outside its head.
        """
        heads = query_BMD[:, None] * self.head_HD[:, None] / math.sqrt(self.dim // HEADS)
        query_BXD = heads.flatten(1, 2)  # X = H M
        scores = [_by_head(query_BXD @ key_BRD.transpose(1, 2)) for key_BRD in keys]
        weights_BHMK = (torch.cat(scores, -1) + bias_BHMK).softmax(-1)
        weights = weights_BHMK[..., : self.ring], weights_BHMK[..., self.ring :]
        sums = [w.flatten(1, 2) @ value_BRD for w, value_BRD in zip(weights, values, strict=True)]
        both_BHMD: Tensor = _by_head(sums[0] + sums[1]) * self.head_HD[:, None]
        return both_BHMD.sum(1)

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


def _by_head(x: Tensor) -> Tensor:
    """[B, H M, …] to [B, H, M, …]."""
    return x.view(x.shape[0], HEADS, x.shape[1] // HEADS, x.shape[2])
