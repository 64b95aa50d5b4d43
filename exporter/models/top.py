"""The best items of all by a product: what every model that scores by user · item + bias ends in.

In torch it is one pass over the catalogue. In the exported graph it is an operator of ours, `stream_worker.Top`, whose
ONNX body exporter/topk.py chooses by the size of the catalogue, and `exporter quantize` changes.

Axes: B users, N items, D item dimension, X excluded items, K list length, E entries, P addends.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from exporter.models.counts import gathered_once


class Named(NamedTuple):
    """What is added to the scores of a few items.

    Attributes:
        rows_BE: int64, in 0..N-1; an item may stand there more than once.
        added_BE: float32, at least 0; 0 where there is no entry.
    """

    rows_BE: Tensor
    added_BE: Tensor


def best(user_BD: Tensor, vectors_ND: Tensor, bias_N: Tensor, excluded_BX: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The K best items that are not excluded: scores float32 [B, K], best first, -inf for none, and rows int64 [B, K].

    Args:
        excluded_BX: int32; an entry outside 0..N-1 is padding.
    """
    if torch.onnx.is_in_onnx_export():
        shape_BK = (user_BD.shape[0], k)
        scores_BK, rows_BK = torch.onnx.ops.symbolic_multi_out(
            "stream_worker::Top",
            (user_BD, vectors_ND, bias_N, excluded_BX),
            {"k": [k]},
            dtypes=(torch.float32, torch.int64),
            shapes=(shape_BK, shape_BK),
            version=1,
        )
        return scores_BK, rows_BK
    scores_BK, rows_BK = exclude(user_BD @ vectors_ND.T + bias_N, excluded_BX).topk(k)
    return scores_BK, rows_BK


def best_with(
    user_BD: Tensor,
    vectors_ND: Tensor,
    bias_N: Tensor,
    excluded_BX: Tensor,
    k: int,
    named: Sequence[Named],
    gain: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """The K best where some items have more: sought among the best without it and all that are named.

    That is the same list: what is not named keeps its place behind K others. Nothing is as long as the catalogue.

    Args:
        named: P of them.
        gain: of what each of them adds to an item, float32 [B, P, E], makes what is added to its score [B, E]: the
            least where all are 0.
    """
    _, recalled_BK = best(user_BD, vectors_ND, bias_N, excluded_BX, k)
    is_row_BX = (excluded_BX >= 0) & (excluded_BX < bias_N.shape[0])
    excluded = Named(torch.where(is_row_BX, excluded_BX, 0).long(), is_row_BX.float())
    entries = [*named, excluded]
    widths = [k, *(rows_BE.shape[1] for rows_BE, _ in entries)]
    added_BPE = torch.stack(  # each has its own columns, under those of the others 0
        [
            F.pad(added_BE, (sum(widths[: place + 1]), sum(widths[place + 2 :])))
            for place, (_, added_BE) in enumerate(entries)
        ],
        dim=1,
    )
    rows_BE, sums_BPE = gathered_once(torch.cat([recalled_BK, *(rows_BE for rows_BE, _ in entries)], 1), added_BPE)
    is_open_BE = (rows_BE >= 0) & (sums_BPE[:, -1] == 0)
    row_BE = rows_BE.clamp(min=0)
    product_BE = (F.embedding(row_BE, vectors_ND) @ user_BD[..., None])[..., 0]
    scores_BE = product_BE + F.embedding(row_BE, bias_N[:, None])[..., 0] + gain(sums_BPE[:, :-1])
    scores_BK, at_BK = torch.where(is_open_BE, scores_BE, float("-inf")).topk(k)
    return scores_BK, row_BE.gather(1, at_BK)


def exclude(scores_BN: Tensor, excluded_BX: Tensor) -> Tensor:
    """The scores with -inf at the excluded rows; an entry outside 0..N-1 is padding.

    By scatter-*add*: padding adds 0 to row 0, which may at the same time be excluded by another column.
    """
    n = scores_BN.shape[1]
    excluded_BX = excluded_BX.long()
    is_item_BX = (excluded_BX >= 0) & (excluded_BX < n)
    addend_BX = torch.where(is_item_BX, float("-inf"), 0.0)
    return scores_BN.scatter_add(1, torch.where(is_item_BX, excluded_BX, 0), addend_BX)
