"""Personal frequency: what a user had often and lately, the user has again.

Hu et al., "Modeling Personalized Item Frequency Information for Next-basket Recommendation", SIGIR 2020, of which this
is the part about the user's own frequency; how much an event of what age still says is learned, as a step function
(Anderson et al., "The Dynamics of Repeat Consumption", WWW 2014). It needs data where people buy again, and lists that
may say so.

Update rule: an event adds to its item what its age is worth, at the time of the user's newest event. Memory per user:
the history. Cost per event: L additions.

Axes: B users, L history length, A steps of age, V events to learn from.
"""

from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from exporter.models.ages import STEPS, age_steps
from exporter.models.base import Plan, Tensors, register
from exporter.models.parts import Counted, Part
from exporter.models.tuning import Batches

SHRINKAGE = 1e-3  # of the logarithms of the steps, towards all the same
SOLVER_STEPS = 100


class PersonalPart(Part):
    """An item's score is the sum over its events in the history of what their age is worth."""

    reads: ClassVar[tuple[str, ...]] = ("history_items", "history_times", "now")
    needs_repeats: ClassVar[bool] = True

    kernel_A1: Tensor

    def __init__(self, plan: Plan) -> None:
        """Nothing to count; until `tune`, every event is worth the same."""
        super().__init__(plan)
        self.register_buffer("kernel_A1", torch.ones(STEPS, 1))

    def entries(self, feeds: Tensors, items: Tensors) -> tuple[Tensor, Tensor]:
        """Each event's own item, int64 and float32 [B, L, 1]."""
        history_BL = feeds["history_items"]
        worth_BL1 = F.embedding(_steps(feeds), self.kernel_A1) * (history_BL >= 0)[..., None]
        return history_BL.clamp(min=0).long()[..., None], worth_BL1

    def tune(self, batches: Batches) -> None:
        """What each age is worth: the likeliest steps, given that one of the events is repeated, in proportion to them.

        Only events whose item stands in the history say something.
        """
        same_VA, all_VA = [], []
        for feeds, target_B in batches:
            history_BL, step_BL = feeds["history_items"], _steps(feeds)
            none_BA = torch.zeros(len(target_B), STEPS)
            same_VA.append(none_BA.scatter_add(1, step_BL, (history_BL == target_B[:, None]).float()))
            all_VA.append(none_BA.scatter_add(1, step_BL, (history_BL >= 0).float()))
        if not batches:
            return
        repeated_V = torch.cat(same_VA).sum(1) > 0
        if repeated_V.any():
            self.kernel_A1 = _fitted(torch.cat(same_VA)[repeated_V], torch.cat(all_VA)[repeated_V])[:, None]

    def adopt(self, tuned: Self) -> None:
        """The kernel."""
        self.kernel_A1 = tuned.kernel_A1


def _steps(feeds: Tensors) -> Tensor:
    """int64 [B, L]: the step on which each event's age stands."""
    return age_steps(feeds["now"][:, None] - feeds["history_times"])


def _fitted(same_VA: Tensor, all_VA: Tensor) -> Tensor:
    """float32 [A], the greatest 1: of the events of each age, all and those of the item that came."""
    free_A = torch.zeros(same_VA.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([free_A], max_iter=SOLVER_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        likelihood_V = (same_VA @ free_A.exp()).log() - (all_VA @ free_A.exp()).log()
        value = SHRINKAGE * free_A.square().mean() - likelihood_V.mean()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    kernel_A = free_A.detach().exp()
    return kernel_A / kernel_A.max()


@register
class Personal(Counted):
    """Personal frequency alone; popularity where the user has had nothing."""

    name: ClassVar[str] = "personal"
    part_type = PersonalPart
