"""Item-based nearest neighbours: items that the same users had close to one another.

Sarwar et al., "Item-based Collaborative Filtering Recommendation Algorithms", WWW 2001 (cosine), with pairs counted
within a window of the user's events and not over all of them, nearer ones for more.

Update rule: none of its own; the counts are those of the log, refreshed with the next bundle, while every event moves
the history that they are looked up for. Memory per user: the history. Cost per event: C * M additions (8 * 64).

Axes: P pairs.
"""

from typing import ClassVar

from exporter.models.base import Plan, register
from exporter.models.counts import Pairs, both_ways, pairs_within
from exporter.models.neighbours import NeighbourPart
from exporter.models.parts import Counted

WINDOW = 30


class ItemKNNPart(NeighbourPart):
    """item <-> the items within thirty events before or after it, each by 1 / sqrt(distance)."""

    prefix: ClassVar[str] = "knn"

    def count(self, plan: Plan) -> Pairs:
        """The neighbours."""
        return both_ways(pairs_within(plan.log, WINDOW, lambda distance: distance**-0.5, plan.items), plan.items)


@register
class ItemKNN(Counted):
    """Item-based nearest neighbours alone."""

    name: ClassVar[str] = "itemknn"
    part_type = ItemKNNPart
