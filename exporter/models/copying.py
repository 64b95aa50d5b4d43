"""What the history itself says: people have again what they had, and by a softmax over all items that is hard to learn.

Ren et al., "RepeatNet: A Repeat Aware Neural Recommendation Machine for Session-based Recommendation", AAAI 2019, and
Vinyals, Fortunato & Jaitly, "Pointer Networks", NIPS 2015; here the pointer adds to the logits, so that one softmax and
one graph hold both:

    logit of item i += log(1 + sum over its events j of exp(step of j's age + worth of i + query . key of j))

Axes: B users, L history length, Q queries (L or 1), D item dimension, P size of queries and keys, S steps of age.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporter.models.ages import STEPS, age_steps

QUERY = 16
FIRST_STEP = -2.0  # of an event, before training
MOST = 8.0  # keeps the exponential finite
WORTH_STD = 0.02


class Copies(NamedTuple):
    """What is added to the logits of which items.

    Attributes:
        rows_BQL: int64, item rows; 0 with nothing to add where there is no event.
        added_BQL: float32, 0 but at the newest event of each item.
    """

    rows_BQL: Tensor
    added_BQL: Tensor


class Copying(nn.Module):
    """The pointer."""

    def __init__(self, dim: int) -> None:
        """Weights for hidden vectors and items of size `dim`."""
        super().__init__()
        self.steps_S1 = nn.Parameter(torch.full((STEPS, 1), FIRST_STEP))
        self.worth = nn.Linear(dim, 1)
        nn.init.normal_(self.worth.weight, std=WORTH_STD)
        self.query = nn.Linear(dim, QUERY)
        self.key = nn.Linear(dim, QUERY)

    def forward(
        self, history_BL: Tensor, items_BLD: Tensor, times_BL: Tensor, hidden_BQD: Tensor, now_BQ: Tensor
    ) -> Copies:
        """For the last Q positions of the history, each with the events up to it.

        Args:
            history_BL: item rows, padding -1.
            items_BLD: the item vectors of these.
            times_BL: epoch ms.
            hidden_BQD: of the model, at each position.
            now_BQ: epoch ms, the time at each position.
        """
        length, queries = history_BL.shape[1], hidden_BQD.shape[1]
        step_BQL = age_steps(now_BQ[..., None] - times_BL[:, None])
        strength_BQL = F.embedding(step_BQL, self.steps_S1)[..., 0] + self.worth(items_BLD)[:, None, :, 0]
        match_BQL = self.query(hidden_BQD) @ self.key(items_BLD).transpose(1, 2) / math.sqrt(QUERY)
        place_L = torch.arange(length, device=history_BL.device)
        place_Q1 = place_L[-queries:, None]
        visible_BQL = (place_L <= place_Q1) & (history_BL >= 0)[:, None]
        each_BQL = (strength_BQL + match_BQL).clamp(max=MOST).exp() * visible_BQL
        same_BLL = history_BL[..., None] == history_BL[:, None]
        next_BL = torch.where(same_BLL & (place_L > place_L[:, None]), place_L, length).amin(-1)
        newest_BQL = visible_BQL & (next_BL[:, None] > place_Q1)
        added_BQL = (each_BQL @ same_BLL.float()).log1p() * newest_BQL
        return Copies(history_BL.clamp(min=0).long()[:, None].expand_as(added_BQL), added_BQL)
