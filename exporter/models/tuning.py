"""What `tune` measures with: NDCG@10 on stored validation events.

Axes: B users, N items, V sampled validation events.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from exporter.models.base import Tensors
from exporter.models.top import exclude

EVENTS = 4096  # enough to choose a decay by: the standard error of NDCG@10 is then about .004
TOP = 10

Batches = list[tuple[Tensors, Tensor]]
Knob = TypeVar("Knob")


def sample(validation: Iterable[tuple[Tensors, Tensor]], most: int = EVENTS) -> Batches:
    """About `most` events with a known item, spread evenly over the batches, which come shortest history first."""
    batches = list(validation)
    step = max(1, -(-sum(len(target_B) for _, target_B in batches) // most))
    chosen: Batches = []
    for feeds, target_B in batches:
        at = torch.arange(len(target_B))[len(chosen) % step :: step]
        at = at[target_B[at] >= 0]
        if len(at):
            chosen.append(({name: tensor[at] for name, tensor in feeds.items()}, target_B[at]))
    return chosen


def ndcg_of(scores: Callable[[Tensors], Tensor], batches: Batches) -> float:
    """Mean NDCG@10 of scores [B, N] after exclusion; an excluded target counts 0."""
    total, events = 0.0, 0
    with torch.inference_mode():
        for feeds, target_B in batches:
            gain_B = gains(exclude(scores(feeds), feeds["excluded_items"]), target_B)
            total, events = total + gain_B.sum().item(), events + len(gain_B)
    return total / max(events, 1)


def gains(scores_BN: Tensor, target_B: Tensor) -> Tensor:
    """float32 [B]: 1 / log2(rank + 1) of each target within the first ten, rank = 1 + higher + ties / 2, else 0."""
    score_B1 = scores_BN.gather(1, target_B[:, None])
    ties_B = (scores_BN == score_B1).sum(1) - 1
    rank_B = 1 + (scores_BN > score_B1).sum(1) + ties_B / 2
    found_B = (rank_B <= TOP) & score_B1[:, 0].isfinite()
    return torch.where(found_B, 1 / (rank_B + 1).log2(), 0.0)


def best(values: Sequence[Knob], measure: Callable[[Knob], float], now: Knob) -> Knob:
    """The value that measures highest; of equals `now`, if it is one of them, else the first."""
    measured = [measure(value) for value in values]
    equals = [value for value, found in zip(values, measured, strict=True) if found == max(measured)]
    return now if now in equals else equals[0]
