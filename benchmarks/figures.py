"""Turns to figures, and figures to lines. Pure.

A figure is the median of its repeats; a ratio is the median of the ratios within each repeat, where both sides met
the same events minutes apart at most on the same noisy machine.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import arena
from benchmarks.arena import Turn, Turns
from stream_worker.metrics import STAGES

Figures = dict[str, Any]  # name -> median; "repeats" -> name -> one a repeat


def backlog(turns: Sequence[Turn]) -> Figures:
    """Of one contender's turns at a backlog."""
    return medians(
        [
            {
                "events_per_s": turn.events / turn.seconds,
                "lists_per_s": turn.lists / turn.seconds,
                "cpu_us_per_event": turn.cpu_s / turn.events * 1e6,
                "cpu_us_per_list": turn.cpu_s / turn.lists * 1e6,
                "list_bytes": turn.list_bytes / turn.lists,
                "rss_mib": turn.rss_mib,
            }
            for turn in turns
        ]
    )


def paced(turns: Sequence[Turn]) -> Figures:
    """Of one contender's turns at a steady rate."""
    each = []
    for turn in turns:
        p50, p99, p999 = np.percentile([sample.waited_ms for sample in turn.samples], (50, 99, 99.9)).tolist()
        each.append(
            {
                "p50_ms": p50,
                "p99_ms": p99,
                "p99.9_ms": p999,
                "cpu_us_per_event": turn.cpu_s / turn.events * 1e6,
                "lists_per_event": turn.lists / turn.events,
            }
        )
    return medians(each)


def all_paced(turns: Turns, rates: Iterable[float]) -> dict[str, dict[str, Figures]]:
    """Of all contenders, by rate."""
    return {f"{rate:g}": {name: paced(each) for name, each in turns[arena.paced(rate)].items()} for rate in rates}


def stages(turns: Sequence[Turn]) -> dict[str, float]:
    """Wall time per event of each stage of a backlog, us; medians.

    poll is the rest of the turn: its own time holds the standing still before, and the waiting after.
    """
    each = []
    for turn in turns:
        seconds = {name: turn.stages_s.get(name, 0.0) for name in STAGES}
        seconds["poll"] = turn.seconds - sum(value for name, value in seconds.items() if name != "poll")
        each.append({name: value / turn.events * 1e6 for name, value in seconds.items()})
    return {name: statistics.median(one[name] for one in each) for name in STAGES}


def checkpoints(turns: Sequence[Turn]) -> Figures:
    """Of one worker's turns of one kind."""
    return medians(
        [
            {
                "users_each": turn.states / max(turn.checkpoints, 1),
                "ms_each": turn.checkpoints_s / max(turn.checkpoints, 1) * 1000,
                "checkpoints": turn.checkpoints,
                "users": turn.states,
            }
            for turn in turns
        ]
    )


def ratio(
    figures: Mapping[str, Figures],
    name: str,
    ours: str,
    theirs: str,
    at_least: float | None = None,
    at_most: float | None = None,
) -> dict[str, Any]:
    """One contender's figure over another's; `met` says whether it keeps the bar, if there is one."""
    pairs = zip(figures[ours]["repeats"][name], figures[theirs]["repeats"][name], strict=True)
    return bar([one / max(other, 1e-9) for one, other in pairs], at_least, at_most)


def bar(values: Sequence[float], at_least: float | None = None, at_most: float | None = None) -> dict[str, Any]:
    """Ratios of one repeat each, as one, and whether it keeps the bar, if there is one."""
    value = statistics.median(values)
    met = None
    if at_least is not None:
        met = value >= at_least
    elif at_most is not None:
        met = value <= at_most
    limit = {"at_least": at_least} if at_least is not None else {"at_most": at_most} if at_most is not None else {}
    return {"value": value, "least": min(values), "most": max(values), **limit, "met": met}


def setting(result: Mapping[str, Any]) -> list[str]:
    """What was served, and to whom."""
    load = result["load"]
    return [
        served(result),
        f"load   {load['users']:,} users, Zipf {load['zipf']}, histories of {load['fill_each']} or more, "
        f"seed {result['seed']}, {load['repeats']} repeats in turns, medians",
    ]


def served(result: Mapping[str, Any]) -> str:
    """The bundle, in a line."""
    bundle = result["bundle"]
    return f"bundle {bundle['model']}: {bundle['items']} items, L {bundle['L']}, K {bundle['K']}"


def backlog_and_paced(result: Mapping[str, Any]) -> list[str]:
    """The two tables of all contenders."""
    load = result["load"]
    lines = [
        f"backlog of {load['backlog']:,} events, drained at full speed, one partition",
        *rows(result["backlog"]),
        "",
    ]
    for rate, table in result["paced"].items():
        lines += [
            f"paced at {rate} events/s for {load['paced_s']:g} s, event-to-list by the broker's clock",
            *rows(table),
            "",
        ]
    return lines


def rows(table: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each contender under a line of names."""
    names = [name for name in next(iter(table.values())) if name != "repeats"]
    widths = [max(len(name), 9) for name in names]
    head = "  ".join(name.rjust(width) for name, width in zip(names, widths, strict=True))
    margin = max(8, *(len(label) + 2 for label in table))
    lines = [f"  {'':{margin}}{head}"]
    for label, figures in table.items():
        cells = (_format(figures[name]).rjust(width) for name, width in zip(names, widths, strict=True))
        lines.append(f"  {label:{margin}}{'  '.join(cells)}")
    return lines


def verdicts(bars: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each ratio."""
    lines = []
    for name, one in bars.items():
        sign, limit = (">=", one["at_least"]) if "at_least" in one else ("<=", one.get("at_most"))
        verdict = "" if limit is None else f"  bar {sign} {limit:g}: {'met' if one['met'] else 'NOT MET'}"
        lines.append(f"  {name:24}{one['value']:6.2f} ({one['least']:.2f} to {one['most']:.2f}){verdict}")
    return lines


def medians(each: Sequence[Mapping[str, float]]) -> Figures:
    """The figures of one repeat each, as one."""
    repeats = {name: [one[name] for one in each] for name in each[0]}
    return {name: statistics.median(values) for name, values in repeats.items()} | {"repeats": repeats}


def _format(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
