"""The files of a command as clean, filtered events: what training and evaluation share.

Both must see the same log, or the bundle is tested on something else than it was trained for.
"""

from dataclasses import dataclass

import polars as pl

from exporter.data import Columns, load_events, load_items
from exporter.filters import Filters, filtered, session_line, session_places
from exporter.settings import DataSettings
from stream_worker.errors import DataError


@dataclass(frozen=True, eq=False)
class Dataset:
    """What the files hold.

    Attributes:
        items: item, title and perhaps attributes; None without an items file.
        events: user, item, action, time (epoch ms), in time order.
        sessions: session and place of each event (filters.py); None without a gap.
        lines: the cleaning report.
    """

    items: pl.DataFrame | None
    events: pl.DataFrame
    sessions: pl.DataFrame | None
    lines: list[str]


def load(settings: DataSettings) -> Dataset:
    """Load, clean and filter.

    Raises:
        DataError: a file is not as required, or no event is left.
    """
    columns = Columns(
        settings.user_column,
        settings.item_column,
        settings.time_column,
        settings.action_column,
        settings.title_column,
        settings.rating_column,
    )
    items, lines = load_items(settings.items, columns) if settings.items else (None, list[str]())
    events, cleaning = load_events(settings.events, columns, None if items is None else items["item"].to_list())
    filters = Filters(settings.max_events_per_minute, settings.max_events_per_hour, settings.core)
    events, cleaning = filtered(events, cleaning, filters)
    lines += cleaning.lines()
    if not events.height:
        raise DataError(f"{settings.events}: the filters leave no event. Lower --core or raise --max-events-per-hour.")
    sessions = None
    if settings.session_gap_minutes is not None:
        sessions = session_places(events, round(settings.session_gap_minutes * 60_000))
        lines.append(session_line(sessions, settings.session_gap_minutes))
    return Dataset(items, events, sessions, lines)
