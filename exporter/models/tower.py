"""The item side of a model: a learned vector of each item's id, plus what its content says.

An item that training never saw has its content alone. So that this is worth something, training now and then hides the
id of items it knows: Volkovs, Yu & Poutanen, "DropoutNet: Addressing Cold Start in Recommender Systems", NIPS 2017.

Axes: N items of the catalogue, n of them or new ones, F features of the content, D item dimension.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from exporter.models.base import Plan

INITIAL_STD = 0.02
HIDDEN_IDS = 0.15  # share of items known by their content alone in a step of training


class Items(NamedTuple):
    """Vectors [n, D] and biases [n]."""

    vectors: Tensor
    bias: Tensor


class ContentEncoder(nn.Module):
    """Content to a vector and a bias: what the bundle's `item_encoder.onnx` holds."""

    def __init__(self, features: int, dim: int) -> None:
        """Linear in the features, so that every word and attribute has a vector of its own."""
        super().__init__()
        self.vector = nn.Linear(features, dim, bias=False)
        self.bias = nn.Linear(features, 1)
        nn.init.normal_(self.vector.weight, std=INITIAL_STD)
        nn.init.zeros_(self.bias.weight)

    def forward(self, content_nF: Tensor) -> tuple[Tensor, Tensor]:
        """[n, F] to [n, D] and [n]."""
        return self.vector(content_nF), self.bias(content_nF)[:, 0]


class ItemTower(nn.Module):
    """All items of a plan.

    `encoder` is None where the plan has no content.
    """

    content_NF: Tensor
    known_N: Tensor

    def __init__(self, plan: Plan) -> None:
        """Initial weights from torch's current seed."""
        super().__init__()
        self.ids_ND = nn.Parameter(torch.randn(plan.items, plan.dim) * INITIAL_STD)
        self.bias_N = nn.Parameter(torch.zeros(plan.items))
        content_NF = plan.content_NF
        self.encoder = None if content_NF is None else ContentEncoder(content_NF.shape[1], plan.dim)
        self.register_buffer("content_NF", content_NF, persistent=False)
        # Without content there is nothing else to know an item by.
        known_N = plan.counts_N > 0 if content_NF is not None else torch.ones(plan.items, dtype=torch.bool)
        self.register_buffer("known_N", known_N, persistent=False)

    def forward(self) -> Items:
        """The whole catalogue."""
        known_N = self.known_N
        if self.training and self.encoder is not None:
            known_N = known_N & (torch.rand(len(known_N)) >= HIDDEN_IDS)
        vectors_ND, bias_N = self.ids_ND * known_N[:, None], self.bias_N * known_N
        if self.encoder is None:
            return Items(vectors_ND, bias_N)
        content_vectors_ND, content_bias_N = self.encoder(self.content_NF)
        return Items(vectors_ND + content_vectors_ND, bias_N + content_bias_N)
