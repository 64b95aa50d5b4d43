"""The demo's data and its model: what was there from the last run is used again.

The first 80 % of the events, by time, train the model; the rest is what the demo replays. Where the cut lies is the
trainer's own function, so the model has seen nothing of what is replayed.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import polars as pl

from demo.children import Stop, run_to_end
from demo.settings import ROOT, DemoSettings
from exporter.data import Columns, first_test_event, load_events, load_items
from stream_worker.errors import BundleError, StreamWorkerError
from stream_worker.manifest import Manifest, find_bundle, read_manifest, sha256_of

TRAIN_SHARE = 0.8
MOVIELENS = ROOT / ".cache" / "movielens"
MADE_FROM = "made-from.json"  # in the directory of models: what its current bundle was trained on
LIMIT = ["--max-minutes", "2"]  # of training; what only counts needs none


class Event(NamedTuple):
    """One event of the replay; `value` is the record's."""

    user: str
    item: str
    time_ms: int
    value: bytes


@dataclass(frozen=True)
class Data:
    """Events and items, and which part is replayed."""

    events: Path
    items: Path | None
    trained: int
    replay: Sequence[Event]
    users: int  # in the replayed part
    popular: Sequence[str]  # all items, by their number of events in the first part
    titles: dict[str, str]


def fetch(settings: DemoSettings, stop: Stop) -> tuple[Path, Path | None]:
    """The files of events and items; MovieLens 100k is downloaded unless it is there.

    Raises:
        StreamWorkerError: it cannot be downloaded; the message says why.
    """
    if settings.events:
        return settings.events, settings.items
    events, items = MOVIELENS / "events.parquet", MOVIELENS / "items.parquet"
    if not (events.is_file() and items.is_file()):
        log = settings.directory / "movielens.log"
        child = run_to_end("movielens", ["-m", "demo.movielens", str(MOVIELENS)], stop, log)
        if child.returncode:
            raise StreamWorkerError(child.last_words())
    return events, items


def load(events: Path, items: Path | None) -> Data:
    """Read and split the files, and encode the events of the last part in the order of time.

    Raises:
        DataError: a file is not as required.
    """
    columns = Columns()
    catalogue = load_items(items, columns)[0] if items else None
    table, _ = load_events(events, columns, None if catalogue is None else catalogue["item"].to_list())
    first = first_test_event(table.height, TRAIN_SHARE)
    replay = table[first:].select("user", "item", "action", "time")
    titles = dict(catalogue.select("item", "title").iter_rows()) if catalogue is not None else {}
    return Data(
        events=events,
        items=items,
        trained=first,
        replay=[
            Event(row["user"], row["item"], row["time"], msgspec.json.encode(row))
            for row in replay.iter_rows(named=True)
        ],
        users=replay["user"].n_unique(),
        popular=_by_popularity(table[:first]["item"]),
        titles={item: title for item, title in titles.items() if title},
    )


def _by_popularity(items: pl.Series) -> list[str]:
    counts = items.value_counts(name="events")
    return counts.sort("events", items.name, descending=[True, False])[items.name].to_list()


def kept_bundle(settings: DemoSettings, data: Data) -> Path | None:
    """The bundle of an earlier run, if it was made from the same data with the same settings and is whole."""
    models = _models(settings)
    try:
        made_from = msgspec.json.decode((models / MADE_FROM).read_bytes())
        bundle = find_bundle(models)
        read_manifest(bundle)
    except (OSError, msgspec.MsgspecError, BundleError):
        return None
    return bundle if made_from == _made_from(settings, data) | {"bundle": bundle.name} else None


def train(settings: DemoSettings, data: Data, stop: Stop) -> Path:
    """Run `exporter train`, its progress on our terminal. Returns the bundle.

    Raises:
        StreamWorkerError: it failed, and has said why.
        Stopped: the user asked for the end.
    """
    models = _models(settings)
    command = ["-m", "exporter", "train", "--events", str(data.events), "--out", str(models)]
    command += ["--items", str(data.items)] if data.items else []
    command += ["--model", settings.model, "--train-share", str(TRAIN_SHARE), "--seed", str(settings.seed)]
    command += LIMIT
    sys.stdout.flush()
    if run_to_end("exporter train", command, stop).returncode:
        raise StreamWorkerError("the model could not be trained; what the exporter said stands above.")
    bundle = find_bundle(models)
    made_from = _made_from(settings, data) | {"bundle": bundle.name}
    (models / MADE_FROM).write_bytes(msgspec.json.encode(made_from))
    return bundle


def verify(bundle: Path, log: Path, stop: Stop) -> int:
    """Run `exporter verify`. Returns how many checks the bundle passed.

    Raises:
        BundleError: it did not pass one.
    """
    child = run_to_end("exporter verify", ["-m", "exporter", "verify", str(bundle)], stop, log)
    if child.returncode:
        raise BundleError(f"{child.last_words()} Remove {bundle.parent} and run again.")
    return sum(line.startswith("OK") for line in log.read_text().splitlines())


def figures(manifest: Manifest) -> Iterator[tuple[str, float, float]]:
    """Name, HR@10 and NDCG@10 of the model and of popularity; nothing if the bundle has no report."""
    for name, prefix in {"popularity": "popularity_", manifest.name: ""}.items():
        if f"{prefix}hr@10" in manifest.report:
            yield name, manifest.report[f"{prefix}hr@10"], manifest.report[f"{prefix}ndcg@10"]


def _models(settings: DemoSettings) -> Path:
    return settings.directory / "models"


def _made_from(settings: DemoSettings, data: Data) -> dict[str, object]:
    return {
        "events": sha256_of(data.events).sha256,
        "items": sha256_of(data.items).sha256 if data.items else None,
        "model": settings.model,
        "seed": settings.seed,
        "train_share": TRAIN_SHARE,
    }
