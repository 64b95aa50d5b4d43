"""Implicit matrix factorisation: item vectors by alternating least squares, users folded in online, exactly.

Rendle et al., "Revisiting the Performance of iALS on Item Recommendation Benchmarks", RecSys 2022 (objective);
Hu, Koren & Volinsky, "Collaborative Filtering for Implicit Feedback Datasets", ICDM 2008.

A user is the w that minimises  sum over events (1 - w·v)² + a0 sum over items (w·v)² + reg |w|²,  that is
(sum v vᵀ + a0 G + reg I) w = sum v.  Both sums are over the user's events, so the vector of a user is these sums: a new
event adds v and the upper triangle of v vᵀ, in any grouping, over the whole life of the user. Conjugate gradients solve
for w inside the graph.

Memory: D + D (D + 1) / 2 floats a user (2,240 bytes at D = 32). Cost: D² / 2 additions an event; STEPS D² multiply-adds
and N D for the scores a list.

Axes: B users, M new events, N items, D item dimension, S size of a user's vector, E events, U users of the log.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from exporter.histories import Ints
from exporter.models.base import Plan, Recommender, Tensors, from_history, register
from exporter.models.tuning import Batches, best, ndcg_of, sample


@dataclass(frozen=True)
class Weights:
    """a0 and reg of the objective."""

    unobserved: float = 0.3
    ridge: float = 10.0


MAX_DIM = 32
SWEEPS = 8
STEPS = 12  # of conjugate gradients
CHUNK = 4096  # users or items that are solved at a time
GRID = [Weights(unobserved, ridge) for unobserved in (0.03, 0.1, 0.3, 1.0) for ridge in (1.0, 10.0)]
TINY = 1e-7  # smaller ones are lost in the export
INITIAL_STD = 0.1


@register
class MatrixFactorisation(Recommender):
    """An item's score is the product of its vector with the user's."""

    name: ClassVar[str] = "mf"
    reads: ClassVar[tuple[str, ...]] = ("vector", "new_items")

    initial_ND: Tensor
    items_ND: Tensor
    bias_N: Tensor
    gram_DD: Tensor
    upper_S: Tensor
    unpack_DD: Tensor

    def __init__(self, plan: Plan) -> None:
        """Factorise the log, from torch's current seed."""
        super().__init__()
        d = min(plan.dim, MAX_DIM)
        self.vector_size = d + d * (d + 1) // 2
        rows, columns = np.triu_indices(d)
        unpack_DD = np.empty((d, d), np.int64)
        unpack_DD[rows, columns] = unpack_DD[columns, rows] = np.arange(len(rows))
        self.register_buffer("upper_S", torch.from_numpy(rows * d + columns))
        self.register_buffer("unpack_DD", torch.from_numpy(unpack_DD.ravel()))
        known = plan.log.wanted_E
        self._events = plan.log.user_E[known], plan.log.item_E[known]
        self.register_buffer("bias_N", torch.zeros(plan.items))
        self.register_buffer("initial_ND", torch.randn(plan.items, d) * INITIAL_STD, persistent=False)
        self.register_buffer("items_ND", torch.empty(0))
        self.register_buffer("gram_DD", torch.empty(0))
        self._fit(Weights())

    def _fit(self, weights: Weights) -> None:
        self.weights = weights
        self.items_ND = factorise(*self._events, self.initial_ND, weights)
        self.gram_DD = gram(self.items_ND, weights)

    def tune(self, validation: Iterable[tuple[Tensors, Tensor]]) -> None:
        """Choose the weights whose lists are best."""
        batches = sample(validation)
        self._fit(best(GRID, lambda weights: self._ndcg(weights, batches), self.weights))

    def adopt(self, tuned: Self) -> None:
        """Factorise anew with its weights."""
        self._fit(tuned.weights)

    def _ndcg(self, weights: Weights, batches: Batches) -> float:
        self._fit(weights)
        items = self.item_tensors()

        def scores(feeds: Tensors) -> Tensor:
            return self.scores(self.updated(from_history(feeds, self.kept), items), items)

        return ndcg_of(scores, batches)

    def item_tensors(self) -> dict[str, Tensor]:
        """Item vectors [N, D]; the bias [N] is 0, and hides items."""
        return {"item_vectors": self.items_ND, "item_bias": self.bias_N}

    def update(self, feeds: Tensors, items: Tensors) -> Tensor:
        """Add what the new events bring to both sums."""
        new_BM = feeds["new_items"]
        vectors_BMD = F.embedding(new_BM.clamp(min=0), items["item_vectors"]) * (new_BM >= 0)[..., None].float()
        outer_BDD = vectors_BMD.transpose(1, 2) @ vectors_BMD
        added_BS = torch.cat([vectors_BMD.sum(1), outer_BDD.flatten(1)[:, self.upper_S]], 1)
        return feeds["vector"] + added_BS

    def encode(self, feeds: Tensors, items: Tensors) -> Tensor:
        """Solve for the user's vector w; without events it is 0 and every item scores the same."""
        d = self.items_ND.shape[1]
        right_BD = feeds["vector"][:, :d]
        system_BDD = feeds["vector"][:, d:][:, self.unpack_DD].view(-1, d, d) + self.gram_DD
        return conjugate_gradients(system_BDD, right_BD)


def conjugate_gradients(system_BDD: Tensor, right_BD: Tensor) -> Tensor:
    """Solve system x = right, systems symmetric and positive definite; Jacobi-preconditioned, always STEPS steps."""
    scale_BD = system_BDD.diagonal(dim1=1, dim2=2).rsqrt()
    system_BDD = system_BDD * scale_BD[:, :, None] * scale_BD[:, None, :]
    solution_BD = torch.zeros_like(right_BD)
    residual_BD = direction_BD = right_BD * scale_BD
    norm_B1 = (residual_BD * residual_BD).sum(1, keepdim=True)
    for _ in range(STEPS):
        moved_BD = (system_BDD @ direction_BD[..., None])[..., 0]
        step_B1 = norm_B1 / (direction_BD * moved_BD).sum(1, keepdim=True).clamp(min=TINY)
        solution_BD = solution_BD + step_B1 * direction_BD
        residual_BD = residual_BD - step_B1 * moved_BD
        before_B1, norm_B1 = norm_B1, (residual_BD * residual_BD).sum(1, keepdim=True)
        direction_BD = residual_BD + norm_B1 / before_B1.clamp(min=TINY) * direction_BD
    return solution_BD * scale_BD


def factorise(user_E: Ints, item_E: Ints, items_ND: Tensor, weights: Weights) -> Tensor:
    """Item vectors [N, D] after a number of sweeps of alternating least squares from `items_ND`.

    Args:
        user_E, item_E: int64, the events; an item that a user met n times counts n times.
    """
    if not len(user_E):
        return items_ND
    users, dense_E = np.unique(user_E, return_inverse=True)
    events_UN = _counts(dense_E, item_E, len(users), len(items_ND))
    events_NU = _counts(item_E, dense_E, len(items_ND), len(users))
    for _ in range(SWEEPS):
        users_UD = _solve(events_UN, items_ND, weights)
        items_ND = _solve(events_NU, users_UD, weights)
    return items_ND


def gram(vectors_ND: Tensor, weights: Weights) -> Tensor:
    """What the items a user has not met bring to the system, [D, D], and the ridge."""
    return weights.unobserved * (vectors_ND.T @ vectors_ND) + weights.ridge * torch.eye(vectors_ND.shape[1])


def _counts(row_E: Ints, column_E: Ints, rows: int, columns: int) -> Tensor:
    places = torch.from_numpy(np.stack([row_E, column_E]))
    return _sparse(places, torch.ones(len(row_E)), (rows, columns)).coalesce()


def _solve(events_UN: Tensor, vectors_ND: Tensor, weights: Weights) -> Tensor:
    """The side of the rows, [U, D], given that of the columns."""
    d = vectors_ND.shape[1]
    outer_ND = (vectors_ND[:, :, None] * vectors_ND[:, None, :]).flatten(1)
    gram_DD, right_UD = gram(vectors_ND, weights), events_UN @ vectors_ND
    places, counts = events_UN.indices(), events_UN.values()  # by row
    solved = []
    for start in range(0, len(right_UD), CHUNK):
        end = min(start + CHUNK, len(right_UD))
        first, last = torch.searchsorted(places[0].contiguous(), torch.tensor([start, end])).tolist()
        inside = places[:, first:last] - torch.tensor([[start], [0]])
        part = _sparse(inside, counts[first:last], (end - start, len(vectors_ND)))
        solved.append(torch.linalg.solve((part @ outer_ND).view(-1, d, d) + gram_DD, right_UD[start:end]))
    return torch.cat(solved)


def _sparse(places: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_coo_tensor(places, values, shape, check_invariants=True)
