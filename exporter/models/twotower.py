"""Two towers: items by id and content, users by what they did, and a product between the two.

Covington, Adams & Sargin, "Deep Neural Networks for YouTube Recommendations", RecSys 2016 (a user pooled over the
history); Kabbur, Ning & Karypis, "FISM", KDD 2013 (linear in the items, so that each has its part in a score).

The user is the weighted mean of the history's item vectors; the weight of an event is learned by its place and action.
Memory: none besides the history. Cost: L D for the user, N D for the scores.

Axes: B users, L history length, N items, D item dimension, K list length.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporter.models.base import MASKED, Plan, Recommender, Tensors, register
from exporter.models.tower import Items, ItemTower

ACTIONS = 256
TEMPERATURE = 10.0  # of cosines, to begin with


@register
class TwoTower(Recommender):
    """Scores are u·v, cos(u, v) or u'Av, as the plan says, plus the item's bias."""

    name: ClassVar[str] = "two-tower"
    reads: ClassVar[tuple[str, ...]] = ("history_items", "history_actions")
    explains: ClassVar[bool] = True
    reads_content: ClassVar[bool] = True
    learns_negatives: ClassVar[bool] = True

    window: int

    def __init__(self, plan: Plan) -> None:
        """Initial weights from torch's current seed."""
        super().__init__()
        self.tower = ItemTower(plan)
        self.score = plan.score
        self.window = min(plan.window, plan.length)
        self.place_L = nn.Parameter(-torch.arange(self.window) / 5)  # logits; 0 is the newest event
        self.action_A = nn.Parameter(torch.zeros(ACTIONS))  # logits
        self.sign_A = nn.Parameter(torch.ones(ACTIONS))  # what a dislike adds may be below 0
        self.empty_D = nn.Parameter(torch.zeros(plan.dim))  # the user without history
        self.bilinear = nn.Linear(plan.dim, plan.dim, bias=False) if plan.score == "bilinear" else None
        if self.bilinear is not None:
            nn.init.eye_(self.bilinear.weight)
        self.scale = nn.Parameter(torch.tensor(TEMPERATURE if plan.score == "cosine" else plan.dim**0.5))
        self.dropout = nn.Dropout(plan.dropout)

    @property
    def item_encoder(self) -> nn.Module | None:
        """Of the tower; it gives vectors as `item_tensors` does."""
        return None if self.tower.encoder is None else Normalised(self.tower.encoder, self.score == "cosine")

    def item_tensors(self) -> dict[str, Tensor]:
        """The item tower's output: vectors [N, D], of length 1 for cosines, and bias [N]."""
        items = self._items()
        return {"item_vectors": items.vectors, "item_bias": items.bias}

    def encode(self, feeds: Tensors, items: Tensors) -> Tensor:
        """The user's vector in item space."""
        weights_BL = self._weights(feeds["history_items"], feeds["history_actions"])
        history_BLD = F.embedding(feeds["history_items"].clamp(min=0), items["item_vectors"])
        pooled_BD = (weights_BL[:, None] @ history_BLD)[:, 0]
        return self._user(pooled_BD, (feeds["history_items"] >= 0).any(1))

    def because(self, feeds: Tensors, items: Tensors, top_BK: Tensor) -> Tensor:
        """The column with the largest part in the product, which is linear in the history."""
        history_BL, vectors_ND = feeds["history_items"], items["item_vectors"]
        parts_BLD = F.embedding(history_BL.clamp(min=0), vectors_ND) * self._weights(
            history_BL, feeds["history_actions"]
        ).unsqueeze(-1)
        if self.bilinear is not None:
            parts_BLD = self.bilinear(parts_BLD)
        parts_BKL = F.embedding(top_BK, vectors_ND) @ parts_BLD.transpose(1, 2)
        in_sight_BL = (history_BL >= 0) & (torch.arange(history_BL.shape[1], 0, -1) <= self.window)
        parts_BKL = parts_BKL + torch.where(in_sight_BL, 0.0, MASKED)[:, None]
        return torch.where(history_BL[:, -1:] >= 0, parts_BKL.argmax(dim=-1), -1)

    def loss(self, feeds: Tensors, target_BL: Tensor) -> Tensor:
        """Cross-entropy of each position's next item among all N."""
        items = self._items()
        users_PD = self._users(feeds, items, target_BL)
        logits_PN = F.linear(self.dropout(users_PD), items.vectors, items.bias)
        return F.cross_entropy(logits_PN, target_BL[target_BL >= 0])

    def _items(self) -> Items:
        vectors_ND, bias_N = self.tower()
        return Items(_unit(vectors_ND) if self.score == "cosine" else vectors_ND, bias_N)

    def _users(self, feeds: Tensors, items: Items, target_BL: Tensor) -> Tensor:
        """The user at each position that has a target, [P, D]."""
        history_BL = feeds["history_items"]
        length = history_BL.shape[1]
        distance_LL = torch.arange(length)[:, None] - torch.arange(length)
        logits_BLL = self.place_L[distance_LL.clamp(min=0)] + self.action_A[feeds["history_actions"].int()][:, None]
        visible_BLL = (distance_LL >= 0) & (history_BL >= 0)[:, None]
        sign_BL = self.sign_A[feeds["history_actions"].int()]
        weights_BLL = torch.where(visible_BLL, logits_BLL, MASKED).softmax(-1) * visible_BLL * sign_BL[:, None]
        pooled_BLD = weights_BLL @ F.embedding(history_BL.clamp(min=0), items.vectors)
        has_target_BL = target_BL >= 0
        return self._user(pooled_BLD[has_target_BL], (history_BL >= 0)[has_target_BL])

    def _weights(self, history_BL: Tensor, actions_BL: Tensor) -> Tensor:
        """The weight of each event, [B, L]; 0 of those before the window."""
        length = history_BL.shape[1]
        history_BL, actions_BL = history_BL[:, -self.window :], actions_BL[:, -self.window :]
        logits_BL = (
            self.place_L[: history_BL.shape[1]].flip(0) + F.embedding(actions_BL.int(), self.action_A[:, None])[..., 0]
        )
        is_item_BL = history_BL >= 0
        sign_BL = F.embedding(actions_BL.int(), self.sign_A[:, None])[..., 0]
        weights_BL = torch.where(is_item_BL, logits_BL, MASKED).softmax(-1) * is_item_BL * sign_BL
        return F.pad(weights_BL, (length - history_BL.shape[1], 0))

    def _user(self, pooled_BD: Tensor, some_B: Tensor) -> Tensor:
        if self.bilinear is not None:
            pooled_BD = self.bilinear(pooled_BD)
        user_BD = torch.where(some_B[:, None], pooled_BD, self.empty_D)
        scaled_BD: Tensor = (_unit(user_BD) if self.score == "cosine" else user_BD) * self.scale
        return scaled_BD


class Normalised(nn.Module):
    """An item encoder whose vectors have length 1 where `unit`."""

    def __init__(self, encoder: nn.Module, unit: bool) -> None:
        """Wrap it."""
        super().__init__()
        self.encoder, self.unit = encoder, unit

    def forward(self, content_nF: Tensor) -> tuple[Tensor, Tensor]:
        """[n, F] to [n, D] and [n]."""
        vectors_nD, bias_n = self.encoder(content_nF)
        return (_unit(vectors_nD) if self.unit else vectors_nD), bias_n


def _unit(vectors_nD: Tensor) -> Tensor:
    unit_nD: Tensor = vectors_nD / vectors_nD.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    return unit_nD
