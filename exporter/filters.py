"""Which of the clean events are used: no bots, only users and items with enough events; and what a session is.

Each filter looks at the whole log, its test part included: use the same for all models that are compared.
"""

from dataclasses import dataclass, replace

import polars as pl

from exporter.data import Cleaning

MINUTE_MS, HOUR_MS = 60_000, 3_600_000


@dataclass(frozen=True)
class Filters:
    """What is left out.

    Attributes:
        per_minute, per_hour: a user with more events than this within some minute or hour is a bot; None is no limit.
        core: users and items with fewer events are dropped, again and again until none is left (k-core); 1 keeps all.
    """

    per_minute: int | None = None
    per_hour: int | None = None
    core: int = 1


def filtered(events: pl.DataFrame, cleaning: Cleaning, filters: Filters) -> tuple[pl.DataFrame, Cleaning]:
    """The events that are left, in their order, and the report with what was dropped, and why.

    Args:
        events: user, item, action, time (epoch ms), in time order.
    """
    dropped = dict(cleaning.dropped)
    for most, window_ms, name in ((filters.per_minute, MINUTE_MS, "a minute"), (filters.per_hour, HOUR_MS, "an hour")):
        if most is None:
            continue
        bots = bursts(events, most, window_ms)
        rest = events.filter(~pl.col("user").is_in(bots.implode()))
        if bots.len():
            dropped[f"bot ({bots.len():,} users with over {most:,} events within {name})"] = events.height - rest.height
        events = rest
    rest = core(events, filters.core)
    if rest.height < events.height:
        dropped[f"user or item with fewer than {filters.core:,} events ({filters.core}-core)"] = (
            events.height - rest.height
        )
    return rest, replace(
        cleaning, dropped=dropped, kept=rest.height, users=rest["user"].n_unique(), items=rest["item"].n_unique()
    )


def bursts(events: pl.DataFrame, most: int, window_ms: int) -> pl.Series:
    """The users with more than `most` events within less than `window_ms`, wherever the window begins."""
    span = pl.col("time").shift(-most).over("user") - pl.col("time")
    return events.filter(span < window_ms)["user"].unique()


def core(events: pl.DataFrame, least: int) -> pl.DataFrame:
    """The k-core: the largest part in which every user and every item has at least `least` events (Seidman 1983)."""
    while True:
        rest = events.filter((pl.len().over("user") >= least) & (pl.len().over("item") >= least))
        if rest.height == events.height:
            return events
        events = rest


def session_places(events: pl.DataFrame, gap_ms: int) -> pl.DataFrame:
    """Cut each user's events where nothing happened for longer than the gap.

    Args:
        events: user, item, action, time (epoch ms), in time order.

    Returns:
        session (int64, dense numbers in the order in which sessions begin) and place (int64, from 0: the event's place
        in its session), a row an event.
    """
    begins = (pl.col("time").diff().over("user") > gap_ms).fill_null(True)
    numbered = events.select(
        "user",
        number=pl.when(begins).then(begins.cum_sum() - 1).cast(pl.Int64),
    ).with_columns(session=pl.col("number").forward_fill().over("user"))
    return numbered.select("session", place=pl.int_range(pl.len()).over("session").cast(pl.Int64))


def session_line(places: pl.DataFrame, gap_minutes: float) -> str:
    """The report on sessions."""
    count = places["session"].n_unique()
    return f"sessions: {count:,}, {places.height / count:.1f} events each ({gap_minutes:g} minutes apart)"
