"""Ratings as actions: what a user gave stars to is liked, disliked, or only seen."""

from pathlib import Path

import polars as pl

from stream_worker.errors import DataError

LIKED, DISLIKED = 0.8, 0.4  # shares of the best rating: of five stars, four and more, and two and less


def actions(path: Path, rating: pl.Series) -> pl.Series:
    """`like`, `dislike` or `view` for each rating, null where there is none.

    Raises:
        DataError: the column holds no numbers.
    """
    try:
        stars = rating.cast(pl.Float64)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path}: column {rating.name!r} holds ratings that are no numbers.") from error
    share = stars / pl.Series([stars.max()])
    frame = pl.DataFrame({"share": share})
    liked, disliked = pl.col("share") >= LIKED, pl.col("share") <= DISLIKED
    kind = pl.when(liked).then(pl.lit("like")).when(disliked).then(pl.lit("dislike")).otherwise(pl.lit("view"))
    return frame.select(action=pl.when(pl.col("share").is_not_null()).then(kind))["action"]
