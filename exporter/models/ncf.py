"""Neural collaborative filtering in two stages of one graph: recall by a product, then a network over the candidates.

He et al., "Neural Collaborative Filtering", WWW 2017, whose user is here the pooled history of the two towers; recalled
first, as Covington, Adams & Sargin (RecSys 2016) do, so that the network sees hundreds of items and not all.

Memory: none besides the history. Cost: that of `two-tower`, and CANDIDATES times the network.

Axes: B users, L history length, N items, D item dimension, C candidates, P positions with a target.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporter.models.base import Plan, Tensors, register
from exporter.models.top import best, exclude
from exporter.models.twotower import TwoTower
from exporter.topk import DENSE_ITEMS

CANDIDATES = 200
NEGATIVES = 64  # candidates a position in training, besides the target
BELOW = 1e4  # what was not recalled lies below what was


@register
class NCF(TwoTower):
    """The score of a candidate is its recall score plus what the network makes of user and item."""

    name: ClassVar[str] = "ncf"
    explains: ClassVar[bool] = False  # what the network adds has no parts

    def __init__(self, plan: Plan) -> None:
        """Initial weights from torch's current seed."""
        super().__init__(plan)
        self.sparse = plan.items > DENSE_ITEMS
        self.network = nn.Sequential(
            nn.Linear(3 * plan.dim, plan.dim), nn.ReLU(), nn.Dropout(plan.dropout), nn.Linear(plan.dim, 1)
        )

    def scores(self, feeds: Tensors, items: Tensors) -> Tensor:
        """All items: the candidates by both stages, the rest below them by the first."""
        user_BD = self.encode(feeds, items)
        recall_BN = user_BD @ items["item_vectors"].T + items["item_bias"]
        allowed_BN = exclude(recall_BN, feeds["excluded_items"])
        first_BC, rows_BC = allowed_BN.topk(min(CANDIDATES, recall_BN.shape[1]))
        second_BC = first_BC + self._match(user_BD, F.embedding(rows_BC, items["item_vectors"]))
        return (recall_BN - BELOW).scatter(1, rows_BC, second_BC)

    def top(self, feeds: Tensors, items: Tensors, k: int) -> tuple[Tensor, Tensor]:
        """Of many items the candidates alone are scored by both stages, and no others at all."""
        if not self.sparse or k > CANDIDATES:
            return super().top(feeds, items, k)
        user_BD = self.encode(feeds, items)
        first_BC, rows_BC = best(
            user_BD, items["item_vectors"], items["item_bias"], feeds["excluded_items"], CANDIDATES
        )
        second_BC = first_BC + self._match(user_BD, F.embedding(rows_BC, items["item_vectors"]))
        scores_BK, at_BK = second_BC.topk(k)
        return scores_BK, rows_BC.gather(1, at_BK)

    def loss(self, feeds: Tensors, target_BL: Tensor) -> Tensor:
        """The first stage's cross-entropy among all items, and the second's among the target and hard negatives."""
        items = self._items()
        user_PD = self._users(feeds, items, target_BL)
        target_P = target_BL[target_BL >= 0]
        logits_PN = F.linear(self.dropout(user_PD), items.vectors, items.bias)
        hardest = min(NEGATIVES, logits_PN.shape[1] - 1)
        with torch.no_grad():  # drawn from the first stage's own softmax, by Gumbel's trick
            noise_PN = -torch.empty_like(logits_PN).exponential_().log()
            negative_PC = (logits_PN + noise_PN).scatter(1, target_P[:, None], -BELOW).topk(hardest).indices
        rows_PC = torch.cat([target_P[:, None], negative_PC], 1)
        matched_PC = self._match(user_PD, F.embedding(rows_PC, items.vectors)) + logits_PN.gather(1, rows_PC).detach()
        second = F.cross_entropy(matched_PC, torch.zeros_like(target_P))
        return F.cross_entropy(logits_PN, target_P) + second

    def _match(self, user_BD: Tensor, items_BCD: Tensor) -> Tensor:
        """The network over [user, item, user * item], [B, C]."""
        user_BCD = user_BD[:, None].expand_as(items_BCD) / self.scale
        both: Tensor = self.network(torch.cat([user_BCD, items_BCD, user_BCD * items_BCD], -1))
        return both[..., 0]
