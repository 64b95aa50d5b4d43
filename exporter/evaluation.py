"""How good the lists are: full ranking of all items, walked prequentially.

Before each event of the part under test all items are ranked for its user's history so far (earlier events of that
part included), and the event's item is looked up: rank = 1 + items that score higher + ties / 2. No sampled negatives
(Krichene & Rendle, "On Sampled Metrics for Item Recommendation", KDD 2020). An item that the list cannot hold, because
the catalogue lacks it or the user has seen it, is a miss.

Axes: B users, N items, R ranked events.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exporter.histories import Feeds, Horizon, Ints, Log, feeds_before
from exporter.models.base import Recommender, from_history
from exporter.models.top import exclude

BATCH = 256

Floats = NDArray[np.floating[Any]]
Scorer = Callable[[Feeds], Floats]


def hit_rate(rank_R: Floats, k: int) -> float:
    """Share of events whose item stands among the first k."""
    return float(np.mean(rank_R <= k)) if len(rank_R) else 0.0


def ndcg(rank_R: Floats, k: int) -> float:
    """Mean of 1 / log2(rank + 1) within the first k: NDCG with one relevant item (Järvelin & Kekäläinen 2002)."""
    return float(np.mean(np.where(rank_R <= k, 1 / np.log2(rank_R + 1), 0))) if len(rank_R) else 0.0


def mrr(rank_R: Floats) -> float:
    """Mean of 1 / rank over the whole ranking; a miss counts 0."""
    return float(np.mean(1 / rank_R)) if len(rank_R) else 0.0


def report(rank_R: Floats, prefix: str = "") -> dict[str, float]:
    """The figures of the manifest's report."""
    figures = {"hr@10": hit_rate(rank_R, 10), "ndcg@10": ndcg(rank_R, 10), "mrr": mrr(rank_R)}
    return {prefix + name: round(value, 5) for name, value in figures.items()}


def ranks(scores_BN: Floats, target_B: Ints) -> NDArray[np.float64]:
    """float64 [B]: the rank of each target, infinite if it is -1 (no row) or its score -inf (excluded)."""
    score_B = scores_BN[np.arange(len(target_B)), target_B]
    higher_B = (scores_BN > score_B[:, None]).sum(axis=1)
    ties_B = (scores_BN == score_B[:, None]).sum(axis=1) - 1
    reachable_B = (target_B >= 0) & np.isfinite(score_B)
    return np.where(reachable_B, 1 + higher_B + ties_B / 2, np.inf)


def prequential(scorer: Scorer, log: Log, events_R: Ints, horizon: Horizon) -> NDArray[np.float64]:
    """The rank of each event's item given everything its user did before, float64 [R].

    The walk needs no order: a history before an event is a slice of its user's events. So events with histories of
    like length share a batch.

    Args:
        log: all events up to the last of `events_R`.
        events_R: int64 [R], numbers of events in the log.
    """
    rank_R = np.empty(len(events_R))
    for batch in batches(log, events_R):
        events_B = events_R[batch]
        rank_R[batch] = ranks(scorer(feeds_before(log, events_B, horizon)), log.item_E[events_B])
    return rank_R


def histories_before(log: Log, events_R: Ints, horizon: Horizon) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Feeds just before each of these events, and its item, int64 [B]; histories of like length in a batch."""
    for events_B in batches(log, events_R):
        feeds = feeds_before(log, events_R[events_B], horizon)
        target_B = torch.from_numpy(log.item_E[events_R[events_B]])
        yield {name: torch.from_numpy(array) for name, array in feeds.items()}, target_B


def batches(log: Log, events_R: Ints, size: int = BATCH) -> list[Ints]:
    """Places in `events_R`, shortest history first."""
    place_R = log.place_E[events_R]
    shortest_first = np.argsort(place_R - log.start_E[place_R], kind="stable")
    return np.split(shortest_first, np.arange(size, len(events_R), size))


def scorer_of(model: Recommender) -> Scorer:
    """The scores of all items, excluded ones -inf, as a function of arrays, by the weights the model has now."""
    model.eval()
    with torch.inference_mode():
        items = model.item_tensors()

    def scores(feeds: Feeds) -> Floats:
        tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}
        with torch.inference_mode():
            scores_BN = model.scores(model.updated(from_history(tensors, model.kept), items), items)
            return exclude(scores_BN, tensors["excluded_items"]).numpy()

    return scores
