"""Sequential rules: what came soon after an item comes soon after it again.

Ludewig & Jannach, "Evaluation of Session-based Recommendation Algorithms", UMUAI 2018 (SR), with the newest events of
the history instead of the last one alone, and damped by the popularity of what follows.

Update rule: none of its own; the counts are those of the log, refreshed with the next bundle, while every event moves
the history that they are looked up for. Memory per user: the history. Cost per event: C * M additions (8 * 64).

Axes: P pairs.
"""

from typing import ClassVar

from exporter.models.base import Plan, register
from exporter.models.counts import Pairs, pairs_within
from exporter.models.neighbours import NeighbourPart
from exporter.models.parts import Counted

WINDOW = 10


class RulesPart(NeighbourPart):
    """item -> the items that followed it within ten events, each by 1 / distance."""

    prefix: ClassVar[str] = "rules"

    def count(self, plan: Plan) -> Pairs:
        """The rules."""
        return pairs_within(plan.log, WINDOW, lambda distance: 1 / distance, plan.items)


@register
class Rules(Counted):
    """Sequential rules alone."""

    name: ClassVar[str] = "rules"
    part_type = RulesPart
