"""The figures of one bundle, or of two side by side: what is printed, drawn, and written as JSON.

Axes: R lists, K list length, M figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from exporter.evaluate.bootstrap import Interval, intervals
from exporter.evaluate.calibration import Calibration, calibration
from exporter.evaluate.exposure import co_occurrence, coverage, diversity, exposure, gini, lorenz, novelty
from exporter.evaluate.protocols import Lists, Stream
from exporter.evaluate.ranking import accuracy
from exporter.evaluate.served import Judged
from exporter.evaluate.slices import Slice, by_activity, by_age, by_list, by_session, by_warmth, over_time
from exporter.histories import Ints
from stream_worker.bundle import Bundle

SCHEMA = 1
HEADLINE = 10  # the k of slices and exposure, if it is asked for


class Figure(msgspec.Struct, frozen=True):
    """A mean over lists, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What `exporter evaluate --json` writes; docs/evaluation.md explains each field."""

    schema: int = SCHEMA
    bundle: str
    protocol: str
    events: str
    cut: str  # ISO time of the first event that may be tested
    history_length: int
    list_length: int
    ks: list[int]
    headline: int  # the k of catalogue, slices and judged
    lists: int
    targets: int
    users: int
    seed: int
    metrics: dict[str, Figure]
    catalogue: dict[str, float]
    lorenz: list[float]
    slices: dict[str, list[Slice]]
    calibration: Calibration | None
    judged: dict[str, Judged]
    cleaning: list[str]


class Comparison(msgspec.Struct, frozen=True):
    """What `exporter compare --json` writes: both reports, and B less A with paired intervals."""

    a: Report
    b: Report
    differences: dict[str, Figure]


@dataclass(frozen=True)
class Setup:
    """What was asked for: the parts of a report that are no figures."""

    protocol: str
    events: str
    history_length: int
    ks: tuple[int, ...]
    seed: int
    cleaning: list[str]

    @property
    def headline(self) -> int:
        """10, or the largest k below."""
        return max((k for k in self.ks if k <= HEADLINE), default=min(self.ks))


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A report, and the figures of each list behind it: float64 [R, M], columns as `names`; user_R int64."""

    report: Report
    names: list[str]
    values_RM: NDArray[np.float64]
    user_R: Ints


def evaluated(setup: Setup, bundle: Bundle, stream: Stream, lists: Lists) -> Evaluated:
    """All figures of a bundle's lists."""
    k = setup.headline
    per_list = _per_list(setup, bundle, stream, lists)
    values_RM = np.stack(list(per_list.values()), axis=1)
    shown_N = exposure(lists.rows_RK[:, :k], len(bundle.items))
    report = Report(
        bundle=bundle.manifest.model,
        protocol=setup.protocol,
        events=setup.events,
        cut=str(np.datetime_as_string(stream.time_E[stream.cut].astype("datetime64[ms]"), unit="s")),
        history_length=setup.history_length,
        list_length=bundle.manifest.K,
        ks=list(setup.ks),
        headline=k,
        lists=len(lists),
        targets=len(lists.list_P),
        users=len(np.unique(lists.user_R)),
        seed=setup.seed,
        metrics=_named(list(per_list), intervals(values_RM, lists.user_R, setup.seed)),
        catalogue={f"coverage@{k}": round(coverage(shown_N), 5), f"gini@{k}": round(gini(shown_N), 5)},
        lorenz=lorenz(shown_N).round(5).tolist(),
        slices={
            "activity": by_activity(lists, stream, k),
            "item_age": by_age(lists, stream, k),
            "item_warmth": by_warmth(lists, stream, k),
            "list": by_list(lists, k),
            "session": by_session(lists, stream, k),
            "time": over_time(lists, stream, k),
        },
        calibration=calibration(lists.scores_RK, lists.gains_RK, lists.targets_R),
        judged=dict(lists.judged),
        cleaning=setup.cleaning,
    )
    return Evaluated(report, list(per_list), values_RM, lists.user_R)


def compared(a: Evaluated, b: Evaluated) -> Comparison:
    """Two bundles on the same lists' places: B less A, list by list."""
    names = [name for name in a.names if name in b.names]
    of_a, of_b = (one.values_RM[:, [one.names.index(name) for name in names]] for one in (a, b))
    return Comparison(a.report, b.report, _named(names, intervals(of_b - of_a, a.user_R, a.report.seed)))


def _per_list(setup: Setup, bundle: Bundle, stream: Stream, lists: Lists) -> dict[str, NDArray[np.float64]]:
    """float64 [R] by name: what has a mean and an interval."""
    items, k, before = len(bundle.items), setup.headline, slice(0, stream.cut)
    row_E = stream.row_E[before]
    figures = {
        f"{name}@{at}": values_R
        for at in setup.ks
        for name, values_R in accuracy(lists.gains_RK, lists.targets_R, at).items()
    }
    rows_Rk = lists.rows_RK[:, :k]
    figures[f"novelty@{k}"] = novelty(rows_Rk, np.bincount(row_E[row_E >= 0], minlength=items))
    figures[f"diversity@{k}"] = diversity(rows_Rk, co_occurrence(stream.user_E[before], row_E, items))
    if "item_vectors" in bundle.items.tensors:
        figures[f"diversity_vectors@{k}"] = diversity(rows_Rk, bundle.items.tensors["item_vectors"][:items])
    return figures


def _named(names: Sequence[str], found: Interval) -> dict[str, Figure]:
    rounded = (ends_M.round(5).tolist() for ends_M in found)
    return {name: Figure(*ends) for name, *ends in zip(names, *rounded, strict=True)}
