"""Softmax over a sample of the items, for catalogues where the full one is too slow.

Axes: P positions that have a target, D item dimension, N items, S sampled items, L history length.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from exporter.models.base import MASKED
from exporter.models.copying import Copies


@runtime_checkable
class Sampling(Protocol):
    """A model whose loss can take a sample: so many `negatives` for each batch, 0 for the full softmax."""

    negatives: int


def sampled_softmax(
    hidden_PD: Tensor,
    target_P: Tensor,
    vectors_ND: Tensor,
    bias_N: Tensor,
    share_N: Tensor,
    count: int,
    copies: Copies | None = None,
) -> Tensor:
    """Cross-entropy of each target among itself and a sample that all positions share, a scalar.

    An item is drawn with the probability q, in proportion to `share_N`, and its logit lessened by log(S q), so that the
    sum over the sample is on average that over all other items (Bengio & Senécal 2008; Yi et al., RecSys 2019). A drawn
    item that is the target itself does not count.

    Args:
        share_N: float32, positive.
        count: S.
        copies: rows and additions [P, L]: items of the history with more to their logits than the product; they stand
            in every position's sum besides what is drawn.
    """
    share_N = share_N.to(hidden_PD.device)
    drawn_S = torch.multinomial(share_N, count, replacement=True)
    wanted_P = (hidden_PD * F.embedding(target_P, vectors_ND)).sum(dim=-1) + bias_N[target_P]
    logits_PS = F.linear(hidden_PD, F.embedding(drawn_S, vectors_ND), bias_N[drawn_S])
    corrected_PS = logits_PS - (count * share_N[drawn_S] / share_N.sum()).log()
    corrected_PS = corrected_PS.masked_fill(target_P[:, None] == drawn_S, MASKED)
    logits = [wanted_P[:, None], corrected_PS]
    if copies is not None:
        rows_PL, added_PL = copies
        is_target_PL = rows_PL == target_P[:, None]
        logits[0] = logits[0] + (added_PL * is_target_PL).sum(1, keepdim=True)
        own_PL = (F.embedding(rows_PL, vectors_ND) @ hidden_PD[..., None])[..., 0] + bias_N[rows_PL] + added_PL
        logits.append(own_PL.masked_fill(is_target_PL | (added_PL == 0), MASKED))
    return F.cross_entropy(torch.cat(logits, dim=1), torch.zeros_like(target_P))
