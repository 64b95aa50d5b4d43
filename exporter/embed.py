"""Items' texts as vectors of a sentence-transformers model, for `--content-vectors`: of a catalogue, and of new items.

The model is a folder on this machine: nothing is ever downloaded. The worker never runs it: it reads vectors.

Axes: n items, V size of a vector.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.console import Console

from exporter.data import load_column, load_titles, read_items
from exporter.settings import EmbedSettings
from stream_worker.content import text_of
from stream_worker.errors import DataError, SettingsError

OUT: dict[str, Callable[[pl.DataFrame, Path], Any]] = {
    ".parquet": pl.DataFrame.write_parquet,
    ".jsonl": pl.DataFrame.write_ndjson,
    ".ndjson": pl.DataFrame.write_ndjson,
}
MODULES = "modules.json"  # what tells such a folder from any other


def run(settings: EmbedSettings, console: Console) -> None:
    """Write the items file anew with a column of vectors, whole or not at all.

    Raises:
        SettingsError: the encoder's package or folder is not there, or the file to write is of another kind.
        DataError: the items file is not readable, or an item has no text.
    """
    out = settings.out
    if out.suffix.lower() not in OUT:
        raise SettingsError(f"--out {out}: vectors need {', '.join(OUT)}; CSV has no lists.")
    if not out.parent.is_dir():
        raise SettingsError(f"--out {out}: {out.parent} is no directory.")
    check(settings.text_encoder)
    table = read_items(settings.items)
    texts, lines = texts_of(settings.items, table, settings)
    for line in lines:
        console.print(line)
    vectors_nV = encode(settings, texts)
    column = pl.Series(settings.vector_column, vectors_nV).cast(pl.List(pl.Float32))
    beside = out.with_name(f".{out.name}.new")
    try:
        OUT[out.suffix.lower()](table.with_columns(column), beside)
        beside.rename(out)
    except OSError as error:
        raise SettingsError(f"--out {out}: {error.strerror}. Name a file that can be written.") from error
    size = vectors_nV.shape[1]
    console.print(f"{out}: {len(texts):,} items, a vector of {size} numbers each, --content-vectors {column.name}")


def check(folder: Path) -> None:
    """See that this is a model's folder, before anything takes time.

    Raises:
        SettingsError: it is not.
    """
    if not folder.is_dir():
        raise SettingsError(f"--text-encoder {folder}: no such folder. Nothing is downloaded: name one that is here.")
    if not (folder / MODULES).is_file():
        raise SettingsError(
            f"--text-encoder {folder}: no sentence-transformers folder, as it has no {MODULES}. "
            "SentenceTransformer(…).save(…) writes one."
        )


def texts_of(path: Path, table: pl.DataFrame, settings: EmbedSettings) -> tuple[list[str], list[str]]:
    """The text of each row, and what is to be said of them.

    Raises:
        DataError: a column is missing, or a row has neither title nor attributes.
    """
    item = load_column(path, table, "item", settings.item_column)
    titles = load_titles(path, table, settings.title_column).to_list()
    own = (settings.item_column, settings.title_column, settings.vector_column)
    rows = table.drop(own, strict=False).iter_rows(named=True)
    texts = [text_of(title, row) for title, row in zip(titles, rows, strict=True)]
    if not texts:
        raise DataError(f"{path}: no item.")
    if empty := [name for name, text in zip(item, texts, strict=True) if not text]:
        raise DataError(
            f"{path}: {len(empty):,} of {len(texts):,} items have neither title nor attributes, the first is "
            f"{empty[0]!r}. Give them a title (--title-column), or leave them out."
        )
    untitled = sum(not title.strip() for title in titles)
    lines = [f"items: {len(texts):,} read"]
    if untitled:
        lines.append(f"  {untitled:,} without a title: their attributes alone are encoded")
    return texts, lines


def encode(settings: EmbedSettings, texts: list[str]) -> NDArray[np.float32]:
    """The model's vectors, float32 [n, V].

    Raises:
        SettingsError: the package is not installed, or the folder is not what it needs.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # before the import, which reads it; local_files_only leaves other look-ups
    try:
        import torch
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise SettingsError(
            f"--text-encoder: {error.name} is not installed. It comes with the extra `text`."
        ) from error
    from exporter import device

    torch.set_num_threads(settings.threads)
    where = device.chosen(settings.device, None).name
    folder = settings.text_encoder
    try:
        model: Any = SentenceTransformer(str(folder), device=where, local_files_only=True)
    except Exception as error:  # whatever the modules of the folder raise
        problem = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SettingsError(f"--text-encoder {folder}: not readable by sentence-transformers ({problem}).") from error
    vectors = model.encode(texts, batch_size=settings.batch_size, show_progress_bar=False, convert_to_numpy=True)
    vectors_nV: NDArray[np.float32] = np.asarray(vectors, np.float32)
    if not np.isfinite(vectors_nV).all():
        raise SettingsError(f"--text-encoder {folder}: it gives vectors that are not finite.")
    return vectors_nV
