"""Personal frequency: what a user had often and lately, the user has again.

Hu et al., "Modeling Personalized Item Frequency Information for Next-basket Recommendation", SIGIR 2020, of which this
is the part about the user's own frequency. It needs data where people buy again, and lists that may say so.

Update rule: an event adds 1 to its item, and all fade with the time to the user's newest event. Memory per user: the
history. Cost per event: L additions.

Axes: B users, L history length.
"""

import math
from typing import ClassVar, Self

import torch
from torch import Tensor

from exporter.models.base import Plan, Tensors, register
from exporter.models.parts import Counted, Part, ndcg_of_part
from exporter.models.tuning import Batches, best

DAY_MS = 86_400_000
HALF_LIVES = (1.0, 3.0, 7.0, 15.0, 30.0, 60.0, 120.0, 365.0)  # days


class PersonalPart(Part):
    """An item's score is the sum over its events in the history of .5 ^ (age / half-life)."""

    reads: ClassVar[tuple[str, ...]] = ("history_items", "history_times", "now")
    needs_repeats: ClassVar[bool] = True

    def __init__(self, plan: Plan) -> None:
        """Nothing to count."""
        super().__init__(plan)
        self.items = plan.items
        self.half_life = 30.0

    def entries(self, feeds: Tensors, items: Tensors) -> tuple[Tensor, Tensor]:
        """Each event's own item, int64 and float32 [B, L, 1]."""
        history_BL = feeds["history_items"]
        age_BL = (feeds["now"][:, None] - feeds["history_times"]).float()
        weight_BL = torch.exp(age_BL * (-math.log(2) / (self.half_life * DAY_MS))) * (history_BL >= 0)
        return history_BL.clamp(min=0).long()[..., None], weight_BL[..., None]

    def tune(self, batches: Batches) -> None:
        """The half-life."""
        self.half_life = best(HALF_LIVES, lambda days: self._measure(days, batches))

    def adopt(self, tuned: Self) -> None:
        """The half-life."""
        self.half_life = tuned.half_life

    def _measure(self, days: float, batches: Batches) -> float:
        self.half_life = days
        return ndcg_of_part(self, self.items, batches)


@register
class Personal(Counted):
    """Personal frequency alone; popularity where the user has had nothing."""

    name: ClassVar[str] = "personal"
    part_type = PersonalPart
