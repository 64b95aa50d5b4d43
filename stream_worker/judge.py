"""Live quality: where was the item of an event on the list that its user had before the event?

Prequential evaluation (Dawid 1984; Gama et al. 2009): test on each event, then learn from it.
Axes: B events, K list length.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_worker.batch import NO_ITEM
from stream_worker.metrics import HIT_RANKS, Metrics


def ranks(lists_BK: NDArray[np.int32], items_B: NDArray[np.int32]) -> NDArray[Any]:
    """The place of each item on its list, best = 1; 0 if it is not there or the model does not know it (-1)."""
    match_BK = (lists_BK == items_B[:, None]) & (items_B[:, None] >= 0)
    return np.where(match_BK.any(1), match_BK.argmax(1) + 1, 0)


class Judge:
    """Counts hits, of users' own lists and, for users without one, of the list for everybody.

    Args:
        metrics: counted in `judged` and `hits`.
        variant: their label.
        default_list: item rows of the list for everybody [K].
    """

    def __init__(self, metrics: Metrics, variant: str, default_list: NDArray[np.int32]) -> None:
        self._default_list = default_list
        self._counters = {
            name: (
                metrics.judged.labels(variant=variant, list=name),
                [(k, metrics.hits.labels(variant=variant, list=name, k=k)) for k in HIT_RANKS],
            )
            for name in ("own", "default")
        }

    def judge(self, lists_BK: NDArray[np.int32], items_B: NDArray[np.int32]) -> None:
        """Judge events.

        Args:
            lists_BK: item rows of the last list handed to the producer; a first place of -1 means there was none.
            items_B: item rows of the events, -1 where the model does not know the item: a miss, honestly.
        """
        own_B = lists_BK[:, 0] != NO_ITEM
        self._count("own", ranks(lists_BK[own_B], items_B[own_B]))
        others_B = items_B[~own_B]
        self._count(
            "default",
            ranks(np.broadcast_to(self._default_list, (len(others_B), len(self._default_list))), others_B),
        )

    def _count(self, name: str, ranks_B: NDArray[Any]) -> None:
        if not len(ranks_B):
            return
        judged, hits = self._counters[name]
        judged.inc(len(ranks_B))
        for k, counter in hits:
            counter.inc(int(((ranks_B > 0) & (ranks_B <= k)).sum()))
