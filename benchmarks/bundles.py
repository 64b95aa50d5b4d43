"""The bundle that is served: the demo's, or one of the same shape with random weights, which costs the same to run.

`python -m benchmarks.bundles [--items N] [--model NAME]` makes the latter under .cache/bench and prints its path.
"""

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from benchmarks.contenders import ROOT
from stream_worker.bundle import ItemRow
from stream_worker.errors import BundleError
from stream_worker.manifest import ITEM_ROWS, find_bundle, read_manifest

if TYPE_CHECKING:
    from exporter.models import Recommender

DEMO = ROOT / ".demo" / "models"
CACHE = ROOT / ".cache" / "bench"
ITEMS, DIM, LENGTH, K = 4096, 64, 50, 20


def choose(given: Path | None, smoke: bool, demo: bool = True) -> Path:
    """The bundle to serve: the one given, the demo's unless not wanted, or a synthetic one, made if need be."""
    if given is not None:
        return find_bundle(given)
    if smoke:
        return synthetic(count=256, dim=16, length=10)
    return (_kept(DEMO) if demo else None) or synthetic()


def _kept(models: Path) -> Path | None:
    """The bundle there, unless there is none, or it is of another version."""
    try:
        bundle = find_bundle(models)
        read_manifest(bundle)
    except BundleError:
        return None
    return bundle


def items(bundle: Path) -> list[str]:
    """Its catalogue."""
    decode = msgspec.json.Decoder(ItemRow).decode
    return [decode(line).item for line in (bundle / ITEM_ROWS).read_bytes().splitlines()]


def describe(bundle: Path) -> dict[str, str | int]:
    """For the head of a table and for the JSON."""
    manifest = read_manifest(bundle)
    return {"model": manifest.model, "items": manifest.items, "L": manifest.L, "K": manifest.K}


def synthetic(count: int = ITEMS, dim: int = DIM, length: int = LENGTH, name: str = "sasrec") -> Path:
    """A model with random weights, large enough that users differ; cached."""
    out = CACHE / f"{name}-{count}x{dim}-L{length}"
    kept = _kept(out)
    if kept is not None:
        return kept
    # Not at the top: torch takes seconds to import.
    import polars as pl

    from exporter.export import Serving, write_bundle

    model = random_model(count, dim, length, name)
    table = pl.DataFrame({"item": [f"item{row:08d}" for row in range(count)], "title": ""})
    return write_bundle(out, model, table, Serving(length, K, {"view": 1}, []), datetime.now(UTC))


def random_model(count: int, dim: int, length: int, name: str) -> "Recommender":
    """What `synthetic` exports, the same every time."""
    import numpy as np
    import torch

    from exporter.histories import Log
    from exporter.models import Plan, create

    torch.manual_seed(0)
    rng, events = np.random.default_rng(0), 20 * count
    users_E, items_E = rng.integers(0, count, events), rng.integers(0, count, events)
    seconds_E = 1_700_000_000 + np.arange(events)
    log = Log(users_E, items_E, np.ones(events, np.uint8), np.zeros(events, np.bool_), seconds_E * 1000)
    model = create(name, Plan(count, log, length, length, dim=dim)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def main() -> None:
    """Make one, print its path."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bundles", description=__doc__)
    parser.add_argument("--items", type=int, default=ITEMS, help=f"N ({ITEMS})")
    parser.add_argument("--model", default="sasrec", help="of the zoo (sasrec)")
    arguments = parser.parse_args()
    print(synthetic(arguments.items, name=arguments.model))


if __name__ == "__main__":
    main()
