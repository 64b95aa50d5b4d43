"""The model contract: what a scientist writes, and what the exporter puts around it.

A model is a `torch.nn.Module` that turns a batch of histories into a score for every item. Subclass `Recommender`,
and `exporter train --model package.module:Class` trains, evaluates and exports it; those of the zoo, which `@register`
makes known, go by their names. docs/your-model.md shows one in thirty lines. There is no serving code to write: `Graph`
fuses the model with exclusion and top-k into the one ONNX graph that the worker runs.

Axes: B users, L history length, M new events, N items, D item dimension, S size of a user's vector, X excluded items,
K list length.

The tensors of a batch ("feeds") carry the names of the contract, histories right-aligned and oldest first:

    history_items    int32 [B, L]  rows of the item table, padding -1
    history_actions  uint8 [B, L]  action codes, padding 0
    history_times    int64 [B, L]  epoch ms, padding 0
    now              int64 [B]     time of the user's newest event, 0 if there is none
    excluded_items   int32 [B, X]  rows that must not be recommended, padding -1

A model reads the whole history each time (*recompute*), or keeps a vector of each user and reads only what is new
(*recurrent*: `vector_size`, `update`). It then has these:

    vector           float32 [B, S]  after the events before the new ones; zeros for a new user
    new_items, new_actions, new_times [B, M]  as above, the events that the vector has not seen; after a restart or a
                     late event the whole history, with a vector of zeros
    ring_*           float32 [B, R, E]  what the model keeps of a user's newest R events (`rings`); the worker replaces
                     single places of it. What no event of the history has written is undefined, but finite.

Four rules keep a list the same wherever it is computed; `tests/exporter/test_contract.py` holds every model to them:
a user's list depends on no other user of the batch and on no padding (L varies from batch to batch); no input gives
NaN, an empty history included; the graph reads items from the tensors it is given, never from its own parameters, so
that a row changed at run time counts; and masks are finite (-1e9, not -inf), by arithmetic or `torch.where`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar, Literal, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from exporter.histories import Log
from exporter.models.top import Named, best, best_with, exclude
from stream_worker import plugins
from stream_worker.errors import SettingsError
from stream_worker.manifest import RING_NEW, RING_PLACES

Tensors = Mapping[str, Tensor]

UPDATED = "updated_vector"
MASKED = -1e9  # finite: a softmax over nothing but -inf is NaN in ONNX Runtime, though not in torch
# The value of a row that holds no item; 0 for every other item tensor.
FILLS = {"item_bias": float("-inf"), "item_rules_rows": -1.0, "item_knn_rows": -1.0}


@dataclass(frozen=True, eq=False)
class Plan:
    """What a model is built from.

    Attributes:
        items: N.
        log: the events it may learn from; what is tested lies after them.
        length: L, the newest events of a user that the model looks at.
        window: of these, the newest that a sequence model looks at: attention is dear, counts are not.
        dim: D, the size of an item vector.
        dropout: share of activations dropped in training.
        repeats: whether a list may name items of the user's history.
        content_NF: float32 [N, F], what the items are, as stream_worker/content.py has it; None where nothing is known.
        score: how a model of two towers compares user and item.
        time_gaps: whether a sequence model sees the time between events.
        action_embeddings: whether a sequence model sees the actions.
    """

    items: int
    log: Log
    length: int = 50
    window: int = 50
    dim: int = 64
    dropout: float = 0.3
    repeats: bool = False
    content_NF: Tensor | None = None
    score: Literal["dot", "cosine", "bilinear"] = "dot"
    time_gaps: bool = True
    action_embeddings: bool = False

    @cached_property
    def counts_N(self) -> Tensor:
        """int64 [N], events of each item in the log."""
        return torch.from_numpy(np.bincount(self.log.item_E[self.log.wanted_E], minlength=self.items))


class Recommender(nn.Module, ABC):
    """A model: feeds and item tensors in, a score for every item out.

    Class attributes:
        name: what `--model` calls it.
        reads: the feeds it uses; the worker computes no others. `excluded_items` is always there, for its B.
        explains: whether `because` is part of the graph.
        learns_negatives: whether it learns from what users disliked or hid; else it sees no such event.
        reads_content: whether it looks at the plan's `content_NF`, which takes 4 KB an item; else it is None.
        vector_size: S, of a recurrent model; 0 for others.
        rings: of a recurrent model that keeps more of each event than should be copied for the next one: R and E of
            each, by their names, which begin with `ring_`. Its `updated` gives, beside the vector, `ring_places`
            int64 [B, M], the place of each new event (R: none), and the new entries as `ring_*_new` float32 [B, M, E].
        window: the newest events that it looks at, and is trained on windows of; None: all L of the plan.
        sparse: whether its list is sought without a score for every item, if there is more to a score than a product.
    """

    name: ClassVar[str]
    reads: ClassVar[tuple[str, ...]] = ("history_items",)
    explains: ClassVar[bool] = False
    learns_negatives: ClassVar[bool] = False
    reads_content: ClassVar[bool] = False
    vector_size: int = 0
    rings: Mapping[str, tuple[int, int]] = MappingProxyType({})
    window: int | None = None
    sparse: bool = False

    @property
    def kept(self) -> dict[str, tuple[int, ...]]:
        """What is kept of each user: the shape of the vector and of the rings, by name; nothing by most models."""
        return {**({"vector": (self.vector_size,)} if self.vector_size else {}), **self.rings}

    @property
    def item_encoder(self) -> nn.Module | None:
        """Content float32 [n, F] to `item_vectors` [n, D] and `item_bias` [n] of items that training never saw."""
        return None

    @abstractmethod
    def item_tensors(self) -> dict[str, Tensor]:
        """The tensors with one row an item, which the worker keeps in memory and can change row by row.

        Returns:
            `item_bias` float32 [N], always; `item_vectors` float32 [N, D] if the model has item vectors;
            any further `item_*` [N, …].
        """

    def encode(self, feeds: Tensors, items: Tensors) -> Tensor:
        """The users in item space, float32 [B, D]. A user without history needs a sensible vector, too."""
        raise NotImplementedError(f"{type(self).__name__} overrides neither encode() nor scores()")

    def scores(self, feeds: Tensors, items: Tensors) -> Tensor:
        """Every item's score for every user, float32 [B, N]; a bias of -inf must hide its item.

        Args:
            feeds: the tensors named by `reads`, and `excluded_items` (which the graph applies, not the model).
            items: the tensors of `item_tensors()`, as the worker holds them now; rows may have changed, and rows
                without an item (vectors 0, bias -inf) may stand at the end.
        """
        user_BD = self.encode(feeds, items)
        scores_BN = user_BD @ items["item_vectors"].T + items["item_bias"]
        gains = self.gains(feeds, items, user_BD)
        return scores_BN if gains is None else scores_BN.scatter_add(1, *gains)

    def gains(self, feeds: Tensors, items: Tensors, user_BD: Tensor) -> Named | None:
        """What a few items have on top of the product with the user's vector, none less than 0; None: nothing."""
        return None

    @property
    def is_product(self) -> bool:
        """Whether a score is the product with `encode`, its bias and its gain: no list needs all of them."""
        return type(self).scores is Recommender.scores

    def update(self, feeds: Tensors, items: Tensors) -> Tensor:
        """A recurrent model's vectors after the new events, float32 [B, S]; unchanged where there are none.

        `scores` gets them as the feed `vector`. How events are grouped into updates must make no difference.
        """
        raise NotImplementedError(f"{type(self).__name__} has a vector_size but no update()")

    def updated(self, feeds: Tensors, items: Tensors) -> Tensors:
        """The feeds for `scores`: with a recurrent model's vectors updated."""
        return {**feeds, "vector": self.update(feeds, items)} if self.vector_size else feeds

    def top(self, feeds: Tensors, items: Tensors, k: int) -> tuple[Tensor, Tensor]:
        """The list: its scores float32 [B, K], best first, and its rows int64 [B, K]; -inf where there is no item.

        By a product it is found as exporter/models/top.py does it. Override it where not every item need be scored in
        full, either, for the list to be that of `scores`.

        Args:
            feeds: as for `scores`, and `excluded_items`.
            k: K.
        """
        excluded_BX = feeds["excluded_items"]
        if self.is_product:
            user_BD = self.encode(feeds, items)
            gains = self.gains(feeds, items, user_BD)
            if gains is None:
                return best(user_BD, items["item_vectors"], items["item_bias"], excluded_BX, k)
            if self.sparse:
                return best_with(user_BD, items["item_vectors"], items["item_bias"], excluded_BX, k, [gains], _sum)
        scores_BK, top_BK = exclude(self.scores(feeds, items), excluded_BX).topk(k)
        return scores_BK, top_BK

    def because(self, feeds: Tensors, items: Tensors, top_BK: Tensor) -> Tensor:
        """The history column that moved each recommended item most, int64 [B, K]; -1 if there is none.

        Args:
            top_BK: int64 [B, K], the recommended rows.
        """
        raise NotImplementedError(f"{type(self).__name__} sets explains but has no because()")

    def loss(self, feeds: Tensors, target_BL: Tensor) -> Tensor:
        """The training loss, a scalar, averaged over the positions that have a target.

        A model without parameters needs none: it is not trained.

        Args:
            feeds: history_items, history_actions and history_times of windows of the users' histories. The padding
                column before a user's first event stands for the empty history and has a target, too.
            target_BL: int64 [B, L], the row of the event that followed each column, -1 where there is none.
        """
        raise NotImplementedError(f"{type(self).__name__} has parameters but no loss()")

    @property
    def learner(self) -> "Recommender":
        """What is trained by gradient, and validated for early stopping: a part of a blend, else the model itself."""
        return self

    def tune(self, validation: Iterable[tuple[Tensors, Tensor]]) -> None:
        """Fit what validation decides, such as the weights of a blend; after training, before `refit`.

        Args:
            validation: batches of feeds, each user just before an event of the validation part, and that event's item,
                int64 [B], -1 where the model does not know it.
        """

    def adopt(self, tuned: Self) -> None:
        """Take over what `tune` found for a model that was built from fewer events."""


class Graph(nn.Module):
    """What is exported: the model's list, exclusions left out, and what goes with it.

    The positional inputs are `inputs`, the outputs `outputs`: `items` int64 [B, K] and `scores` float32 [B, K], best
    first, a score of -inf meaning "no item"; `because` int64 [B, K] where the model explains, `updated_vector`
    float32 [B, S] where it keeps one (ONNX allows no output with the name of an input), and what comes into its rings.
    """

    def __init__(self, model: Recommender, k: int) -> None:
        """Store the parts; `k` is K."""
        super().__init__()
        self.model, self.k = model, k
        self.feeds = (*model.reads, "excluded_items")
        self.inputs = (*self.feeds, *model.item_tensors())
        self.entries = ((RING_PLACES,) if model.rings else ()) + tuple(f"{name}{RING_NEW}" for name in model.rings)
        self.outputs = (
            *("items", "scores"),
            *(("because",) if model.explains else ()),
            *((UPDATED,) if model.vector_size else ()),
            *self.entries,
        )

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """One batch, as the worker runs it."""
        named = dict(zip(self.inputs, inputs, strict=True))
        feeds = {name: named[name] for name in self.feeds}
        items = {name: tensor for name, tensor in named.items() if name not in feeds}
        current = self.model.updated(feeds, items)
        scores_BK, top_BK = self.model.top(current, items, self.k)
        outputs = [top_BK, scores_BK]
        if self.model.explains:
            because_BK = self.model.because(current, items, top_BK)
            outputs.append(torch.where(scores_BK > MASKED, because_BK, -1))
        if self.model.vector_size:
            outputs.append(current["vector"])
        return (*outputs, *(current[name] for name in self.entries))


def from_history(feeds: Tensors, kept: Mapping[str, tuple[int, ...]]) -> Tensors:
    """The feeds of users whose vector is rebuilt: all of the history is new."""
    history_BL = feeds["history_items"]
    new = {name.replace("history_", "new_"): tensor for name, tensor in feeds.items() if name.startswith("history_")}
    return {**feeds, **new, **{name: torch.zeros(len(history_BL), *shape) for name, shape in kept.items()}}


def _sum(gains_BPE: Tensor) -> Tensor:
    return gains_BPE.sum(1)


M = TypeVar("M", bound=type[Recommender])

REGISTRY: dict[str, type[Recommender]] = {}


def register(cls: M) -> M:
    """Make the model known to `--model` by its `name`."""
    REGISTRY[cls.name] = cls
    return cls


def create(name: str, plan: Plan) -> Recommender:
    """A new model, with weights from torch's current seed.

    Raises:
        SettingsError: no model has that name.
    """
    return find(name)(plan)


def find(name: str) -> type[Recommender]:
    """The model of that name in the zoo, or the class that "package.module:Class" names.

    Raises:
        SettingsError: there is none.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    if ":" not in name:
        zoo = ", ".join(sorted(REGISTRY))
        raise SettingsError(f"--model {name}: no such model. There are {zoo}, and your own as package.module:Class.")
    found = plugins.load(name, "--model")
    if not (isinstance(found, type) and issubclass(found, Recommender)):
        raise SettingsError(f"--model {name}: is no subclass of exporter.models.base.Recommender.")
    return found
