"""The hybrid: a sequence model's logits and what counts say, added up in one graph.

    score = logit + w_n * log popularity - sum over parts p of w_p * HALF / (x_p + HALF)

x_p is a part's distribution over the items. What it takes away from an item is w_p where the part does not name it, and
soon little where it does: to be named at all matters most. Popularity is part of the items' bias. (On MovieLens and
groceries this blends as well as logarithms with a floor, for a third of their time.) With many items, most of whom no
part names, the list is sought among the K best by logit and bias and all that a part names, which is the same
list: what is not named keeps its place behind K others. The weights are those of a
conditional logit, fitted on the validation part by cross-entropy, none below 0. Blends of neighbours and sequence
models go back to Jannach & Ludewig, "When Recurrent Neural Networks meet the Neighborhood", RecSys 2017.

Update rule, memory per user and cost per event: those of its parts; it adds a division an item and part.

Axes: B users, L history length, N items, K list length, P parts.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporter.models.base import MASKED, Plan, Recommender, Tensors, register
from exporter.models.itemknn import ItemKNNPart
from exporter.models.parts import Part, largest
from exporter.models.personal import PersonalPart
from exporter.models.popularity import Popularity
from exporter.models.rules import RulesPart
from exporter.models.sasrec import SASRec
from exporter.models.top import Named, best_with, exclude
from exporter.models.tuning import Batches, sample
from exporter.models.twotower import TwoTower
from exporter.topk import DENSE_ITEMS

HALF = 0.01  # the share of a part's distribution at which it has half its say
FIRST_WEIGHT = 1.0  # before `tune`: about where it ends
LEAST = 0.05  # weight of the sequence model: its bias is what hides items
STEPS = 100
FIT_EVENTS = 2048  # for the weights: P + 2 numbers, and every step looks at all items of all events
PIECE = 2**24  # scores that are looked at together
FIT_ITEMS = 16_384  # of more, those that the first weights like best, so that memory does not grow with the catalogue


@register
class Hybrid(Recommender):
    """SASRec, sequential rules, item-kNN, personal frequency where items may be listed again, and popularity.

    For a blend of other parts, subclass it and name them.

    Class attributes:
        sequence_type: the model that is trained.
        part_types: the parts beside it.
    """

    name: ClassVar[str] = "hybrid"
    explains: ClassVar[bool] = True
    sequence_type: ClassVar[type[Recommender]] = SASRec
    part_types: ClassVar[tuple[type[Part], ...]] = (RulesPart, ItemKNNPart, PersonalPart)

    weights: Tensor
    parts: nn.ModuleList

    def __init_subclass__(cls) -> None:
        """What the sequence model reads, the blend reads."""
        cls.reads_content = cls.sequence_type.reads_content

    def __init__(self, plan: Plan) -> None:
        """Count, and give the sequence model its weights from torch's current seed."""
        super().__init__()
        self.sequence = self.sequence_type(plan)
        kinds = [kind for kind in self.part_types if plan.repeats or not kind.needs_repeats]
        self.parts = nn.ModuleList(kind(plan) for kind in kinds)
        self.popularity = Popularity(plan)
        self.window = self.sequence.window
        self.sparse = plan.items > DENSE_ITEMS
        self.register_buffer("weights", torch.tensor([*[FIRST_WEIGHT] * len(kinds), 0.0]))
        self._keep(self.part_types)

    @property
    def learner(self) -> Recommender:
        """The sequence model."""
        return self.sequence

    @property
    def item_encoder(self) -> nn.Module | None:
        """Of the sequence model; a new item is in no count yet."""
        return self.sequence.item_encoder

    def item_tensors(self) -> dict[str, Tensor]:
        """Those of the sequence model, with popularity in the bias, and those of the parts."""
        tensors = self._tensors()
        return {**tensors, "item_bias": tensors["item_bias"] + self.weights[-1] * self.popularity.bias_N}

    def _tensors(self) -> dict[str, Tensor]:
        tensors = dict(self.sequence.item_tensors())
        for part in self._parts():
            tensors |= part.tensors()
        return tensors

    def scores(self, feeds: Tensors, items: Tensors) -> Tensor:
        """float32 [B, N]."""
        scores_BN = self.sequence.scores(feeds, items)
        for weight, part in zip(self.weights[:-1], self._parts(), strict=True):
            scores_BN = scores_BN - weight * HALF / part.scores(feeds, items, HALF)
        return scores_BN

    def top(self, feeds: Tensors, items: Tensors, k: int) -> tuple[Tensor, Tensor]:
        """Of few items by `scores`; of many from the best by logit and bias, and what the parts name."""
        if not self._parts():
            return self.sequence.top(feeds, items, k)
        if not (self.sparse and self.sequence.is_product):
            return super().top(feeds, items, k)
        user_BD = self.sequence.encode(feeds, items)
        gains = self.sequence.gains(feeds, items, user_BD)
        entries = [part.distribution(feeds, items) for part in self._parts()]
        named = [Named(items_BCM.flatten(1), share_BCM.flatten(1)) for items_BCM, share_BCM in entries]
        weights_P1 = self.weights[:-1, None]

        def gain(sums_BPE: Tensor) -> Tensor:
            own_BE = sums_BPE[:, : -len(entries)].sum(1)
            return own_BE - (weights_P1 * HALF / (sums_BPE[:, -len(entries) :] + HALF)).sum(1)

        if gains is not None:
            named.insert(0, gains)
        vectors_ND, bias_N = items["item_vectors"], items["item_bias"]
        return best_with(user_BD, vectors_ND, bias_N, feeds["excluded_items"], k, named, gain)

    def because(self, feeds: Tensors, items: Tensors, top_BK: Tensor) -> Tensor:
        """The history column without which the parts would score the item lowest; -1 if they do not speak of it.

        If no part weighs anything, the sequence model's own.
        """
        if not self._parts():
            return self.sequence.because(feeds, items, top_BK)
        lost_BKL = torch.zeros(())
        for weight, part in zip(self.weights[:-1], self._parts(), strict=True):
            share_BKL = part.shares(feeds, items, top_BK)
            whole_BK1 = share_BKL.sum(-1, keepdim=True)
            lost_BKL = lost_BKL + weight * (_say(whole_BK1) - _say(whole_BK1 - share_BKL))
        return largest(lost_BKL)

    def tune(self, validation: Iterable[tuple[Tensors, Tensor]]) -> None:
        """The knobs of the parts, each by itself, then the weights of all."""
        batches = sample(validation)
        self.popularity.tune(batches)
        for part in self._parts():
            part.tune(batches)
        self._fit(sample(batches, FIT_EVENTS))
        self._keep([type(part) for part, weight in zip(self._parts(), self.weights[:-1], strict=True) if weight > 0])

    def adopt(self, tuned: Self) -> None:
        """The knobs and the weights."""
        self._keep([type(part) for part in tuned._parts()])
        self.weights = tuned.weights
        self.popularity.adopt(tuned.popularity)
        for part, other in zip(self._parts(), tuned._parts(), strict=True):
            part.adopt(other)

    def _fit(self, batches: Batches) -> None:
        """Cross-entropy over the weights, by L-BFGS; what they weigh is computed once."""
        pieces: list[tuple[Tensor, Tensor, Tensor]] = []
        items, popularity_N = self._tensors(), self.popularity.bias_N
        self.eval()
        with torch.no_grad():
            for feeds, target_B in _pieces(batches, items["item_bias"].shape[0]):
                excluded_BN = exclude(torch.zeros(len(target_B), len(items["item_bias"])), feeds["excluded_items"])
                reachable_B = excluded_BN.gather(1, target_B[:, None])[:, 0] == 0
                logs = [_say(part.scores(feeds, items)) for part in self._parts()]
                popularity_BN = popularity_N.expand_as(excluded_BN)
                parts_BPN = torch.stack([self.sequence.scores(feeds, items), *logs, popularity_BN], dim=1)
                problem = parts_BPN[reachable_B], excluded_BN[reachable_B].clamp(min=MASKED), target_B[reachable_B]
                pieces.append(_likeliest(*problem))
        if not pieces:
            return
        addends_VPN, open_VN, target_V = (torch.cat(column) for column in zip(*pieces, strict=True))
        del pieces
        if len(target_V):
            weights = _fitted(addends_VPN, open_VN, target_V)
            # The logits' own changes no order, and costs a pass over N.
            self.weights = weights[1:] / weights[0].clamp(min=LEAST)

    def _keep(self, kinds: Sequence[type[Part]]) -> None:
        """Go on with the parts of these kinds alone: what weighs nothing shall cost nothing."""
        keeps = [isinstance(part, tuple(kinds)) for part in self._parts()]
        self.parts = nn.ModuleList(itertools.compress(self._parts(), keeps))
        self.weights = self.weights[[*keeps, True]]
        readers: list[Recommender | Part] = [self.sequence, *self._parts()]
        self.reads = tuple(dict.fromkeys(name for part in readers for name in part.reads))  # type: ignore[misc]

    def _parts(self) -> list[Part]:
        """The parts, with the type that nn.ModuleList forgets."""
        return [part for part in self.parts if isinstance(part, Part)]


@register
class TowerHybrid(Hybrid):
    """The same over two towers, which know items by their content, too, and cost a fifth of self-attention."""

    name: ClassVar[str] = "tower-hybrid"
    sequence_type: ClassVar[type[Recommender]] = TwoTower


def _say(share: Tensor) -> Tensor:
    """Saturating, 0 at 0."""
    return share / (share + HALF)


def _pieces(batches: Batches, n: int) -> Iterator[tuple[Tensors, Tensor]]:
    """The batches in pieces of at most PIECE scores."""
    most = max(1, PIECE // n)
    for feeds, target_B in batches:
        for start in range(0, len(target_B), most):
            piece = slice(start, start + most)
            yield {name: tensor[piece] for name, tensor in feeds.items()}, target_B[piece]


def _likeliest(addends_BPN: Tensor, open_BN: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same problem over the target and the items that could be taken for it; all of them, where they are few."""
    parts, n = addends_BPN.shape[1:]
    if n <= FIT_ITEMS:
        return addends_BPN, open_BN, target_B
    first_P = torch.tensor([1.0, *[FIRST_WEIGHT] * (parts - 2), 0.0])
    blend_BN = torch.einsum("bpn,p->bn", addends_BPN, first_P) + open_BN
    rows_BM = blend_BN.scatter(1, target_B[:, None], float("inf")).topk(FIT_ITEMS).indices  # the target comes first
    addends_BPM = addends_BPN.gather(2, rows_BM[:, None].expand(-1, parts, -1))
    return addends_BPM, open_BN.gather(1, rows_BM), torch.zeros_like(target_B)


def _fitted(addends_VPN: Tensor, open_VN: Tensor, target_V: Tensor) -> Tensor:
    """The weights [P], none below 0, with the least cross-entropy of the targets.

    The problem is convex as long as the sign is free; a part whose weight then is negative is left out, and the rest
    solved anew. (Weights as exponentials of free numbers would stick near 0.)
    """
    kept = torch.ones(addends_VPN.shape[1], dtype=torch.bool)
    while True:
        weights_P = torch.zeros(len(kept))
        weights_P[kept] = _solved(addends_VPN[:, kept], open_VN, target_V)
        if (weights_P >= 0).all() or not kept[1:].any():
            return weights_P.clamp(min=0)
        kept &= weights_P >= 0


def _solved(addends_VPN: Tensor, open_VN: Tensor, target_V: Tensor) -> Tensor:
    """The weights [P] with the least cross-entropy."""
    weights_P = torch.zeros(addends_VPN.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([weights_P], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(torch.einsum("vpn,p->vn", addends_VPN, weights_P) + open_VN, target_V)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return weights_P.detach()
