"""Events from Parquet files, however many, in bounded memory: cleaned, spilled by partition, given back in time order.

It needs polars (see columns.py). The files are read once, in chunks; each chunk goes to a temporary file, sorted by
partition and time. A partition is then read window by window: so many hours of it that they are not too many rows.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from stream_worker.columns import DEFAULT_ACTION, at_path, raw_events, wrongs
from stream_worker.errors import DataError
from stream_worker.messages import FORGET

CHUNK_ROWS = 500_000  # of the files, read at once
WINDOW_ROWS = 200_000  # of a partition, given back at once; a single hour may be more
SPILL_GROUP_ROWS = 16_384  # least that is read of a temporary file
HOUR_MS = 3_600_000


class Fields(NamedTuple):
    """The columns' names: each is a column, or a path into nested ones such as properties.user_id."""

    user: str = "user"
    item: str = "item"
    action: str = "action"
    time: str = "time"


class Window(NamedTuple):
    """Events of one partition in time order, those of one time in the files' order. Times are epoch ms."""

    users: list[str]
    items: list[str | None]  # None for a forget
    actions: list[str]
    times: list[int]


class Warehouse:
    """Events of files, by partition.

    Args:
        files: Parquet files, directories of such, or patterns.
        fields: their columns.
        partition_of: the partition of a user.
        latest_ms: an event after this time lies in the future, and is dropped.
        spill: an empty directory for the temporary files, about 30 bytes an event.
    """

    def __init__(
        self,
        files: Sequence[str],
        fields: Fields,
        partition_of: Callable[[str], int],
        latest_ms: int,
        spill: Path,
    ) -> None:
        self.files = [path for pattern in files for path in _expand(pattern)]
        self._fields = fields
        self._partition_of = partition_of
        self._latest_ms = latest_ms
        self._spill = spill
        self.read = 0  # rows
        self.dropped: Counter[str] = Counter()  # rows by reason
        self._hours: dict[int, list[tuple[int, int]]] = {}  # partition -> (hour, events), in order

    def load(self) -> None:
        """Read the files once.

        Raises:
            DataError: a file is not readable, or a column is missing or holds something else.
        """
        chunks = 0
        for path in self.files:
            for chunk in self._chunks(path):
                self.read += chunk.height
                self._write(self._place(self._clean(path, chunk)), self._spill / f"{chunks:06}.parquet")
                chunks += 1
        if chunks:
            hours = self._scan().group_by("partition", hour=pl.col("time") // HOUR_MS).len().sort("partition", "hour")
            for partition, hour, count in hours.collect().iter_rows():
                self._hours.setdefault(partition, []).append((hour, count))

    def count(self, partition: int) -> int:
        """Events of a partition."""
        return sum(count for _, count in self._hours.get(partition, ()))

    def events(self, partition: int) -> Iterator[Window]:
        """The events of a partition, oldest first."""
        for start, end in _windows(self._hours.get(partition, ())):
            wanted = (pl.col("partition") == partition) & pl.col("time").is_between(start, end, closed="left")
            window = self._scan().filter(wanted).collect().sort("time", maintain_order=True)
            columns = (window[name].to_list() for name in ("user", "item", "action", "time"))
            yield Window(*columns)

    def _write(self, events: pl.DataFrame, path: Path) -> None:
        try:
            events.write_parquet(path, compression="lz4", row_group_size=SPILL_GROUP_ROWS)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"{path}: not written ({error}). Name a larger place with --spill-directory.") from error

    def _scan(self) -> pl.LazyFrame:
        return pl.scan_parquet(self._spill / "*.parquet")

    def _chunks(self, path: Path) -> Iterator[pl.DataFrame]:
        try:
            table = pl.scan_parquet(path)
            schema = table.collect_schema()
            columns = {
                meaning: _column(path, schema, meaning, name) for meaning, name in self._fields._asdict().items()
            }
            events = table.select(column.alias(meaning) for meaning, column in columns.items() if column is not None)
            rows = table.select(pl.len()).collect().item()
            for start in range(0, rows, CHUNK_ROWS):
                yield events.slice(start, CHUNK_ROWS).collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            problem = str(error).strip().splitlines()[0]
            raise DataError(f"{path}: not readable as Parquet ({problem}).") from error

    def _clean(self, path: Path, chunk: pl.DataFrame) -> pl.DataFrame:
        """Events without what is wrong, which is counted under the first reason that applies."""
        action = chunk["action"] if "action" in chunk.columns else None
        raw = raw_events(path, chunk["user"], chunk["item"], chunk["time"], action)
        forget = (pl.col("action") == FORGET).fill_null(False)
        conditions = [(reason, wrong & ~forget if reason == "no item" else wrong) for reason, wrong in wrongs()]
        conditions.append(("time in the future", pl.col("time") > self._latest_ms))
        marked = raw.with_columns(
            reason=pl.coalesce(pl.when(wrong).then(pl.lit(reason)) for reason, wrong in conditions),
            action=pl.when(pl.col("action").fill_null("") == "")
            .then(pl.lit(DEFAULT_ACTION))
            .otherwise(pl.col("action")),
        )
        self.dropped.update(dict(marked["reason"].drop_nulls().value_counts().iter_rows()))
        return marked.filter(pl.col("reason").is_null()).select("user", "item", "action", "time")

    def _place(self, events: pl.DataFrame) -> pl.DataFrame:
        users = events.select(pl.col("user").unique())
        placed = users.with_columns(
            partition=pl.Series([self._partition_of(user) for user in users["user"]], dtype=pl.Int32)
        )
        return events.join(placed, on="user", maintain_order="left").sort("partition", "time", maintain_order=True)


def _expand(pattern: str) -> list[Path]:
    path = Path(pattern)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(path.rglob("*.parquet"))
    else:
        anchor = Path(path.anchor) if path.is_absolute() else Path()
        found = sorted(anchor.glob(str(path.relative_to(path.anchor) if path.is_absolute() else path)))
    if not found:
        raise DataError(f"{pattern}: no such Parquet file.")
    return found


def _column(path: Path, schema: pl.Schema, meaning: str, name: str) -> pl.Expr | None:
    """The column of that name or path; None for an action that nobody asked for."""
    column = at_path(schema, name)
    if column is not None:
        return column
    if meaning == name == "action":
        return None
    raise DataError(f"{path}: no column {name!r}. There are {', '.join(schema)}. Name it with --event-{meaning}-field.")


def _windows(hours: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Spans of time, from and before, of at most WINDOW_ROWS events; an hour is not cut."""
    start, events = 0, 0
    for hour, count in hours:
        if events and events + count > WINDOW_ROWS:
            yield start, hour * HOUR_MS
            start, events = hour * HOUR_MS, 0
        events += count
    if events:
        yield start, (hours[-1][0] + 1) * HOUR_MS
