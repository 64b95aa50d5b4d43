"""Columns of files as the wire wants them: ids as text, times as epoch milliseconds, and what is wrong with a row.

The trainer and `stream-worker seed` read files by these same rules. It needs polars, which the worker does not: nothing
that a running worker imports may import this.
"""

from typing import cast

import polars as pl

from stream_worker.errors import DataError
from stream_worker.messages import EARLIEST_MS, LATEST_MS, MAX_ACTION_BYTES, MAX_ID_BYTES, RESERVED_USER

DEFAULT_ACTION = "view"
# Milliseconds of a unit of time, by the number from which on it is one: 1e11 s is the year 5138, 1e11 ms is 1973.
UNITS_MS = {0: 1000.0, 1e11: 1.0, 1e14: 1e-3, 1e17: 1e-6}


def at_path(schema: pl.Schema, name: str) -> pl.Expr | None:
    """The column of that name, or at that dotted path within objects; None if it is not there."""
    if name in schema:
        return pl.col(name)
    head, *rest = name.split(".")
    if not rest or head not in schema:
        return None
    column, kind = pl.col(head), schema[head]
    for part in rest:
        fields = {field.name: field.dtype for field in kind.fields} if isinstance(kind, pl.Struct) else {}
        if part not in fields:
            return None
        column, kind = column.struct.field(part), cast("pl.DataType", fields[part])
    return column


def wrongs() -> list[tuple[str, pl.Expr]]:
    """Why a row of user, item, action (text), has_time (bool) and time (epoch ms) is no event: reason and condition."""
    return [
        ("no user", absent("user")),
        ("no item", absent("item")),
        ("bad user (over 256 bytes, control characters, or '*')", bad("user") | (pl.col("user") == RESERVED_USER)),
        ("bad item (over 256 bytes, or control characters)", bad("item")),
        ("bad action (over 64 bytes, or control characters)", bad("action", MAX_ACTION_BYTES)),
        ("no time", ~pl.col("has_time")),
        ("unreadable time", pl.col("time").is_null()),
        ("time before 1990 or after 2105", ~pl.col("time").is_between(EARLIEST_MS, LATEST_MS, closed="left")),
    ]


def raw_events(
    where: object, user: pl.Series, item: pl.Series, time: pl.Series, action: pl.Series | None
) -> pl.DataFrame:
    """The columns of events as `wrongs` judges them, a row a row.

    Args:
        where: the file, for messages.
        user, item, time, action: its columns; without an action it is null.

    Raises:
        DataError: a column holds something else altogether.
    """
    return pl.DataFrame(
        {
            "user": id_text(where, user),
            "item": id_text(where, item),
            "action": pl.repeat(None, len(user), dtype=pl.String, eager=True)
            if action is None
            else id_text(where, action),
            "has_time": time.cast(pl.String).fill_null("") != "",
            "time": milliseconds(where, time),
        }
    )


def milliseconds(where: object, column: pl.Series) -> pl.Series:
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
    raise DataError(f"{where}: column {column.name!r} holds {column.dtype}, not times.")


def _from_numbers(column: pl.Series) -> pl.Series:
    """Epoch seconds, milli-, micro- or nanoseconds, as the middle value of the column tells, to ms."""
    finite = column.set(~column.is_finite().fill_null(False), None)
    middle = finite.abs().median()
    size = middle if isinstance(middle, float) else 0.0
    factor = next(unit for least, unit in reversed(UNITS_MS.items()) if size >= least)
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


def id_text(where: object, column: pl.Series) -> pl.Series:
    """A column of ids as text; whole numbers that a missing value has turned to floats lose their .0."""
    if column.dtype.is_float():
        whole = (column == column.round()).fill_null(False).all() or bool((column.drop_nulls() % 1 == 0).all())
        column = column.cast(pl.Int64, strict=False) if whole else column
    if column.dtype.is_nested() or column.dtype == pl.Binary:
        raise DataError(f"{where}: column {column.name!r} holds {column.dtype}, not text or numbers.")
    return column.cast(pl.String)


def absent(name: str) -> pl.Expr:
    """Whether a column of text has nothing there."""
    return pl.col(name).is_null() | (pl.col(name) == "")


def bad(name: str, max_bytes: int = MAX_ID_BYTES) -> pl.Expr:
    """Whether a text is too long, or has control characters."""
    return (pl.col(name).str.len_bytes() > max_bytes) | pl.col(name).str.contains(r"\p{Cc}")
