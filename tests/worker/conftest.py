"""Small bundles, exported for real: models with random weights, and popularity."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from stream_worker.bundle import Bundle

ITEMS, LENGTH, K = 60, 10, 5


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of bundles by model name."""
    import polars as pl
    import torch

    from exporter.export import Serving, write_bundle
    from exporter.models import Plan, create
    from exporter.training import seed_everything
    from tests.logs import counted

    log = counted(range(ITEMS, 0, -1))
    items = pl.DataFrame({"item": [f"i{row}" for row in range(ITEMS)], "title": "a title"})
    serving = Serving(LENGTH, K, {"view": 1, "click": 2, "purchase": 4}, ["purchase", "hide"])
    paths = {}
    for name in ("sasrec", "popularity", "gru4rec", "mf"):
        seed_everything(0)
        model = create(name, Plan(ITEMS, log, LENGTH, dim=16)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)  # so that users differ
        paths[name] = tmp_path_factory.mktemp(name)
        write_bundle(paths[name], model, items, serving, datetime(2026, 1, 1, tzinfo=UTC))
    return paths


@pytest.fixture(scope="session")
def sasrec(models: dict[str, Path]) -> Bundle:
    """The sequence model, warm."""
    bundle = Bundle(models["sasrec"])
    bundle.warm_up()
    return bundle


@pytest.fixture(scope="session")
def popularity(models: dict[str, Path]) -> Bundle:
    """The trivial model, warm."""
    bundle = Bundle(models["popularity"])
    bundle.warm_up()
    return bundle


@pytest.fixture(scope="session")
def recurrent(models: dict[str, Path]) -> dict[str, Bundle]:
    """Models that keep a vector, warm."""
    bundles = {name: Bundle(models[name]) for name in ("gru4rec", "mf")}
    for bundle in bundles.values():
        bundle.warm_up()
    return bundles
