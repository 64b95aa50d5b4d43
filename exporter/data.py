"""Events and items from files: load, map the columns, clean with a report, encode.

Polars reads; what leaves this file is a frame of clean events in time order, then arrays (histories.py takes over).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from exporter import ratings
from exporter.histories import FIRST_NEGATIVE
from stream_worker.columns import DEFAULT_ACTION, absent, at_path, bad, id_text, raw_events, wrongs
from stream_worker.errors import DataError
from stream_worker.messages import FORGET, NEGATIVE_ACTIONS

KNOWN_ACTIONS = ("view", "click", "cart", "purchase", "like")
# They exclude an item, and are no target of training. Their codes are the same in every bundle.
NEGATIVE_CODES = {name: code for code, name in enumerate(NEGATIVE_ACTIONS, FIRST_NEGATIVE)}
MAX_ACTIONS = FIRST_NEGATIVE - 1


@dataclass(frozen=True)
class Columns:
    """The columns' names in the file."""

    user: str = "user"
    item: str = "item"
    time: str = "time"
    action: str = "action"
    title: str = "title"
    rating: str = ""


@dataclass(frozen=True)
class Cleaning:
    """What was read, dropped and kept. Each dropped row counts once, under the first reason that applies."""

    read: int
    dropped: dict[str, int]
    kept: int
    moved: int  # kept rows that stood after a later one, and were put in time order
    users: int
    items: int

    def lines(self) -> list[str]:
        """The report as text."""
        lines = [f"events: {self.read:,} read, {self.kept:,} kept ({self.users:,} users, {self.items:,} items)"]
        lines += [f"  dropped {count:,}: {reason}" for reason, count in self.dropped.items()]
        if self.moved:
            lines.append(f"  moved {self.moved:,}: out of time order, sorted")
        return lines


def read_table(path: Path) -> pl.DataFrame:
    """Read Parquet, CSV, TSV or JSON lines, by suffix. The columns of CSV stay text, so that an id 007 stays 007.

    Raises:
        DataError: the file is absent, of another kind, or not readable as what its suffix says.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    try:
        match path.suffix.lower():
            case ".parquet" | ".pq":
                return pl.read_parquet(path)
            case ".csv":
                return pl.read_csv(path, infer_schema=False)
            case ".tsv":
                return pl.read_csv(path, infer_schema=False, separator="\t")
            case ".jsonl" | ".ndjson" | ".json":
                return pl.read_ndjson(path, infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        problem = str(error).strip().splitlines()[0]
        raise DataError(f"{path}: not readable as {path.suffix[1:]} ({problem}).") from error
    raise DataError(f"{path}: unknown kind of file {path.suffix!r}. Take .parquet, .csv, .tsv, .jsonl or .ndjson.")


def load_events(path: Path, columns: Columns, wanted: Sequence[str] | None = None) -> tuple[pl.DataFrame, Cleaning]:
    """Load and clean a file of events.

    Args:
        path: the file; its columns user, item, time and optionally action, under the names of `columns`.
        wanted: the items of the items file; events of other items are dropped.

    Returns:
        user, item, action (text) and time (int64, epoch ms), in time order, rows of one time in the file's order.

    Raises:
        DataError: the file is not readable, a column is missing or of a wrong type, or no event is left.
    """
    table = read_table(path)
    names = {"user": columns.user, "item": columns.item, "time": columns.time}
    user, item, time = (column_of(path, table, meaning, name) for meaning, name in names.items())
    action = None
    if columns.action != Columns.action or columns.action in table.columns:
        action = column_of(path, table, "action", columns.action)
    if columns.rating:
        rated = ratings.actions(path, column_of(path, table, "rating", columns.rating))
        action = rated if action is None else rated.zip_with(rated.is_not_null(), id_text(path, action))
    raw = raw_events(path, user, item, time, action)
    events, cleaning = clean(raw, wanted)
    if not cleaning.kept:
        why = "; ".join(f"{count:,} {reason}" for reason, count in cleaning.dropped.items()) or "the file is empty"
        raise DataError(f"{path}: no event is left ({why}). See --user-column, --item-column, --time-column.")
    return events, cleaning


def clean(raw: pl.DataFrame, wanted: Sequence[str] | None = None) -> tuple[pl.DataFrame, Cleaning]:
    """Drop what cannot be used, count why, and sort by time (stable: the file's order decides within one time).

    Args:
        raw: user, item, action (text or null), has_time (bool), time (int64 epoch ms, null where not readable).
        wanted: the items to keep; None keeps all.
    """
    reasons = [*wrongs(), ("forget (it is of no item)", pl.col("action") == FORGET)]
    if wanted is not None:
        reasons.append(("item not in the items file", ~pl.col("item").is_in(list(wanted))))
    reason = pl.coalesce(pl.when(wrong).then(pl.lit(text)) for text, wrong in reasons)
    marked = raw.with_columns(
        pl.when(absent("action")).then(pl.lit(DEFAULT_ACTION)).otherwise(pl.col("action")).alias("action")
    ).with_columns(reason.alias("reason"))
    counts = dict(marked["reason"].drop_nulls().value_counts().iter_rows())
    usable = marked.filter(pl.col("reason").is_null()).select("user", "item", "action", "time")
    # The worker's state holds whole seconds: the same user, item and action within one second is one event.
    events = (
        usable.sort("time", maintain_order=True)
        .with_columns(second=pl.col("time") // 1000)
        .unique(["user", "item", "action", "second"], keep="first", maintain_order=True)
        .drop("second")
    )
    dropped = {text: counts[text] for text, _ in reasons if text in counts}
    if usable.height > events.height:
        dropped["duplicate (same user, item, action and second)"] = usable.height - events.height
    return events, Cleaning(
        read=raw.height,
        dropped=dropped,
        kept=events.height,
        moved=usable.select((pl.col("time") < pl.col("time").cum_max()).sum()).item(),
        users=events["user"].n_unique(),
        items=events["item"].n_unique(),
    )


def first_test_event(events: int, train_share: float) -> int:
    """The number of the first event, in time order, that is not trained on; the demo replays from there."""
    return round(events * train_share)


def load_items(path: Path, columns: Columns) -> tuple[pl.DataFrame, list[str]]:
    """Load the items file: item, title (optional), and every other column as an attribute.

    Returns:
        item, title (text, "" if there is none) and attributes (a struct, absent if there are no more columns), in the
        file's order; and the report as lines.

    Raises:
        DataError: the file is not readable, has no item column, or no item is left.
    """
    table = read_items(path)
    item = load_column(path, table, "item", columns.item)
    title = load_titles(path, table, columns.title)
    items = pl.DataFrame({"item": item, "title": title})
    rest = [name for name in table.columns if name not in (columns.item, columns.title)]
    if rest:
        items = items.with_columns(table.select(pl.struct(rest).alias("attributes")))
    named = items.filter(~absent("item") & ~bad("item"))
    kept = named.unique("item", keep="first", maintain_order=True)
    if not kept.height:
        raise DataError(f"{path}: no item is left of {table.height:,} rows. See --item-column.")
    lines = [f"items: {table.height:,} read, {kept.height:,} kept"]
    if items.height > named.height:
        lines.append(f"  dropped {items.height - named.height:,}: no item, over 256 bytes, or control characters")
    if named.height > kept.height:
        lines.append(f"  dropped {named.height - kept.height:,}: item named twice (the first is kept)")
    return kept, lines


def load_column(path: Path, table: pl.DataFrame, meaning: str, name: str) -> pl.Series:
    """A column of ids or titles as text.

    Raises:
        DataError: it is not there, or holds something else.
    """
    return id_text(path, column_of(path, table, meaning, name))


def load_titles(path: Path, table: pl.DataFrame, name: str) -> pl.Series:
    """The titles as text, "" where there is none.

    Raises:
        DataError: a column is named that is not there.
    """
    if name not in table.columns and name == Columns.title:
        return pl.repeat("", table.height, dtype=pl.String, eager=True)
    return load_column(path, table, "title", name).fill_null("")


def read_items(path: Path) -> pl.DataFrame:
    """Read a file of items; what is in an object `attributes`, as in a bundle's items.jsonl, becomes columns.

    Raises:
        DataError: the file is not readable, or an attribute has the name of a column.
    """
    table = read_table(path)
    if not isinstance(table.schema.get("attributes"), pl.Struct):
        return table
    try:
        return table.unnest("attributes")
    except pl.exceptions.DuplicateError as error:
        raise DataError(f"{path}: an attribute has the name of a column ({str(error).splitlines()[0]}).") from error


def column_of(path: Path, table: pl.DataFrame, meaning: str, name: str) -> pl.Series:
    """The column of that name, or at that dotted path.

    Raises:
        DataError: it is not there.
    """
    column = at_path(table.schema, name)
    if column is None:
        raise DataError(
            f"{path}: no column {name!r}. There are {', '.join(table.columns)}. Name it with --{meaning}-column."
        )
    return table.select(column).to_series()


def action_codes(events: pl.DataFrame) -> dict[str, int]:
    """Codes 1, 2, …: the known actions first, then those of the events by name; and those of the negative ones.

    Raises:
        DataError: more than 253 different actions.
    """
    found = sorted(set(events["action"].unique()) - set(KNOWN_ACTIONS) - NEGATIVE_CODES.keys())
    names = (*KNOWN_ACTIONS, *found)
    if len(names) > MAX_ACTIONS:
        raise DataError(f"events: {len(names)} different actions, at most {MAX_ACTIONS}. Is --action-column right?")
    return {name: code for code, name in enumerate(names, start=1)} | NEGATIVE_CODES
