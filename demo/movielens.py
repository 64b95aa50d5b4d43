"""MovieLens 100k for the demo and the quality figures: real ratings as a stream of views.

The data may not be redistributed (Harper & Konstan, "The MovieLens Datasets: History and Context", TiiS 2015), so it is
not in the repository: it comes out of the wheel of RecBole, which ships it as its example, through the ordinary
package index. `python -m demo.movielens [DIRECTORY]` writes `events.parquet` and `items.parquet` there.
"""

import sys
import tempfile
from pathlib import Path

import polars as pl

from demo.wheels import ROOT, unpack
from stream_worker.errors import DataError, StreamWorkerError

WHEEL = "recbole==1.2.1"
INSIDE = Path("recbole", "dataset_example", "ml-100k")
EVENTS = "events.parquet"
ITEMS = "items.parquet"


def fetch(directory: Path) -> tuple[Path, Path]:
    """Make sure that the two files lie in `directory`; a second call does nothing.

    `events.parquet`: user, item (text), time (int64, epoch seconds), action ("view"); 100,000 rows in the wheel's
    order, which decides among the three quarters of them that share user and second with another.
    `items.parquet`: item, title, genres (list of text), year (int, or null).

    Raises:
        DataError: the wheel cannot be downloaded, or does not hold the data.
    """
    events, items = directory / EVENTS, directory / ITEMS
    if not (events.is_file() and items.is_file()):
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as unpacked:
            unpack(WHEEL, Path(unpacked), "MovieLens 100k")
            source = Path(unpacked) / INSIDE
            _write(_ratings(source / "ml-100k.inter"), events)
            _write(_films(source / "ml-100k.item"), items)
    return events, items


def _ratings(path: Path) -> pl.DataFrame:
    return _table(path).select(
        user=pl.col("user_id:token"),
        item=pl.col("item_id:token"),
        time=pl.col("timestamp:float").cast(pl.Float64).cast(pl.Int64),
        action=pl.lit("view"),
    )


def _films(path: Path) -> pl.DataFrame:
    return _table(path).select(
        item=pl.col("item_id:token"),
        title=pl.col("movie_title:token_seq"),
        genres=pl.col("class:token_seq").str.split(" "),
        year=pl.col("release_year:token").cast(pl.Int32, strict=False),
    )


def _table(path: Path) -> pl.DataFrame:
    if not path.is_file():
        raise DataError(f"MovieLens 100k: {WHEEL} does not hold {INSIDE / path.name}.")
    return pl.read_csv(path, separator="\t", infer_schema=False, quote_char=None)


def _write(table: pl.DataFrame, path: Path) -> None:
    beside = path.with_name(path.name + ".new")
    table.write_parquet(beside)
    beside.rename(path)


def main() -> int:
    """`python -m demo.movielens [DIRECTORY]`."""
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / ".cache" / "movielens"
    try:
        for path in fetch(directory):
            print(path)
    except StreamWorkerError as error:
        print(f"movielens: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
