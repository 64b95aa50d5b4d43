"""Events and items from files: load, map the columns, clean with a report, encode.

Polars reads; what leaves this file is a frame of clean events in time order, then arrays (histories.py takes over).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from stream_worker.errors import DataError
from stream_worker.messages import EARLIEST_MS, LATEST_MS, MAX_ACTION_BYTES, MAX_ID_BYTES, RESERVED_USER

DEFAULT_ACTION = "view"
KNOWN_ACTIONS = ("view", "click", "cart", "purchase", "like")
NEGATIVE_ACTIONS = frozenset({"dislike", "hide"})  # they exclude an item; they never predict the next one
MAX_ACTIONS = 255

# Numbers below are epoch seconds, above are milliseconds: 1e11 s is the year 5138, 1e11 ms is 1973.
MILLISECONDS_FROM = 1e11


@dataclass(frozen=True)
class Columns:
    """The columns' names in the file."""

    user: str = "user"
    item: str = "item"
    time: str = "time"
    action: str = "action"
    title: str = "title"


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
    _require(path, table, names)
    if columns.action in table.columns:
        names["action"] = columns.action
    elif columns.action != Columns.action:
        raise DataError(_missing(path, table, "action", columns.action))
    raw = pl.DataFrame(
        {
            "user": _text(path, table[names["user"]]),
            "item": _text(path, table[names["item"]]),
            "action": _text(path, table[names["action"]])
            if "action" in names
            else pl.repeat(None, table.height, dtype=pl.String, eager=True),
            "has_time": table[names["time"]].cast(pl.String).fill_null("") != "",
            "time": _milliseconds(path, table[names["time"]]),
        }
    )
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
    reasons: list[tuple[str, pl.Expr]] = [
        ("no user", _absent("user")),
        ("no item", _absent("item")),
        ("bad user (over 256 bytes, control characters, or '*')", _bad("user") | (pl.col("user") == RESERVED_USER)),
        ("bad item (over 256 bytes, or control characters)", _bad("item")),
        ("bad action (over 64 bytes, or control characters)", _bad("action", MAX_ACTION_BYTES)),
        ("no time", ~pl.col("has_time")),
        ("unreadable time", pl.col("time").is_null()),
        ("time before 1990 or after 2105", ~pl.col("time").is_between(EARLIEST_MS, LATEST_MS, closed="left")),
    ]
    if wanted is not None:
        reasons.append(("item not in the items file", ~pl.col("item").is_in(list(wanted))))
    reason = pl.coalesce(pl.when(wrong).then(pl.lit(text)) for text, wrong in reasons)
    marked = raw.with_columns(
        pl.when(_absent("action")).then(pl.lit(DEFAULT_ACTION)).otherwise(pl.col("action")).alias("action")
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
    table = read_table(path)
    _require(path, table, {"item": columns.item})
    item = _text(path, table[columns.item])
    title = (
        _text(path, table[columns.title]).fill_null("")
        if columns.title in table.columns
        else pl.repeat("", table.height, dtype=pl.String, eager=True)
    )
    items = pl.DataFrame({"item": item, "title": title})
    rest = [name for name in table.columns if name not in (columns.item, columns.title)]
    if rest:
        items = items.with_columns(table.select(pl.struct(rest).alias("attributes")))
    named = items.filter(~_absent("item") & ~_bad("item"))
    kept = named.unique("item", keep="first", maintain_order=True)
    if not kept.height:
        raise DataError(f"{path}: no item is left of {table.height:,} rows. See --item-column.")
    lines = [f"items: {table.height:,} read, {kept.height:,} kept"]
    if items.height > named.height:
        lines.append(f"  dropped {items.height - named.height:,}: no item, over 256 bytes, or control characters")
    if named.height > kept.height:
        lines.append(f"  dropped {named.height - kept.height:,}: item named twice (the first is kept)")
    return kept, lines


def action_codes(events: pl.DataFrame) -> dict[str, int]:
    """Codes 1, 2, …: the known actions first, then those of the events by name, without the negative ones.

    Raises:
        DataError: more than 255 different actions.
    """
    found = sorted(set(events["action"].unique()) - set(KNOWN_ACTIONS) - NEGATIVE_ACTIONS)
    names = (*KNOWN_ACTIONS, *found)
    if len(names) > MAX_ACTIONS:
        raise DataError(f"events: {len(names)} different actions, at most {MAX_ACTIONS}. Is --action-column right?")
    return {name: code for code, name in enumerate(names, start=1)}


def _milliseconds(path: Path, column: pl.Series) -> pl.Series:
    """Times as int64 epoch ms, null where not readable: dates, epoch numbers, or text of either."""
    if column.dtype == pl.Date or isinstance(column.dtype, pl.Datetime):
        return column.cast(pl.Datetime("ms")).dt.epoch("ms")
    if column.dtype.is_numeric():
        return _from_numbers(column.cast(pl.Float64))
    if column.dtype == pl.String:
        return _from_numbers(column.cast(pl.Float64, strict=False)).zip_with(
            column.cast(pl.Float64, strict=False).is_not_null(), _from_iso(column)
        )
    if column.dtype == pl.Null:
        return column.cast(pl.Int64)
    raise DataError(f"{path}: column {column.name!r} holds {column.dtype}, not times.")


def _from_numbers(column: pl.Series) -> pl.Series:
    """Epoch seconds or milliseconds, as the middle value of the column tells, to ms."""
    finite = column.set(~column.is_finite().fill_null(False), None)
    middle = finite.abs().median()
    factor = 1 if isinstance(middle, float) and middle >= MILLISECONDS_FROM else 1000
    return (finite * factor).round().cast(pl.Int64, strict=False)


def _from_iso(column: pl.Series) -> pl.Series:
    """ISO 8601 text to ms: a date, or date and time with or without fraction and offset; UTC where none is given."""
    text = (
        column.str.strip_chars()
        .str.replace(r"^(\d{4}-\d{2}-\d{2})$", "${1}T00:00:00")
        .str.replace(r"^(\d{4}-\d{2}-\d{2}) ", "${1}T")
        .str.replace(r"^(.{10}T\d{2}:\d{2})($|[Zz+-])", "${1}:00$2")
        .str.replace(r"[Zz]$", "+00:00")
        .str.replace(r"([+-]\d{2})(\d{2})$", "$1:$2")
        .str.replace(r"^(.{10}T[\d:.]+)$", "${1}+00:00")
    )
    return text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%:z", time_unit="ms", strict=False).dt.epoch("ms")


def _text(path: Path, column: pl.Series) -> pl.Series:
    """A column of ids as text; whole numbers that a missing value has turned to floats lose their .0."""
    if column.dtype.is_float():
        whole = (column == column.round()).fill_null(False).all() or bool((column.drop_nulls() % 1 == 0).all())
        column = column.cast(pl.Int64, strict=False) if whole else column
    if column.dtype.is_nested() or column.dtype == pl.Binary:
        raise DataError(f"{path}: column {column.name!r} holds {column.dtype}, not text or numbers.")
    return column.cast(pl.String)


def _absent(name: str) -> pl.Expr:
    return pl.col(name).is_null() | (pl.col(name) == "")


def _bad(name: str, max_bytes: int = MAX_ID_BYTES) -> pl.Expr:
    return (pl.col(name).str.len_bytes() > max_bytes) | pl.col(name).str.contains(r"\p{Cc}")


def _require(path: Path, table: pl.DataFrame, names: dict[str, str]) -> None:
    for meaning, name in names.items():
        if name not in table.columns:
            raise DataError(_missing(path, table, meaning, name))


def _missing(path: Path, table: pl.DataFrame, meaning: str, name: str) -> str:
    return f"{path}: no column {name!r}. There are {', '.join(table.columns)}. Name it with --{meaning}-column."
