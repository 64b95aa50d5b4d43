"""Small bundles, exported for real: models with random weights, and popularity."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from stream_worker.bundle import Bundle

ITEMS, LENGTH, K = 60, 10, 5


class Exported(dict[str, Path]):
    """Directories of bundles by model name, each exported when it is first asked for."""

    def __init__(self, make: Callable[[str], Path]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, name: str) -> Path:
        self[name] = self._make(name)
        return self[name]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Small models of these items, with random weights."""

    def export(name: str) -> Path:
        import polars as pl
        import torch

        from exporter.export import Serving, write_bundle
        from exporter.models import Plan, create
        from exporter.training import seed_everything
        from tests.logs import counted

        seed_everything(0)
        model = create(name, Plan(ITEMS, counted(range(ITEMS, 0, -1)), LENGTH, dim=16)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)  # so that users differ
        items = pl.DataFrame({"item": [f"i{row}" for row in range(ITEMS)], "title": "a title"})
        serving = Serving(LENGTH, K, {"view": 1, "click": 2, "purchase": 4}, ["purchase", "hide"])
        out = tmp_path_factory.mktemp(name)
        write_bundle(out, model, items, serving, datetime(2026, 1, 1, tzinfo=UTC))
        return out

    return Exported(export)


@pytest.fixture(scope="session")
def sasrec(models: Mapping[str, Path]) -> Bundle:
    """The sequence model, warm."""
    bundle = Bundle(models["sasrec"])
    bundle.warm_up()
    return bundle


@pytest.fixture(scope="session")
def popularity(models: Mapping[str, Path]) -> Bundle:
    """The trivial model, warm."""
    bundle = Bundle(models["popularity"])
    bundle.warm_up()
    return bundle


@pytest.fixture(scope="session")
def keeping(models: Mapping[str, Path], request: pytest.FixtureRequest) -> Bundle:
    """A model that keeps a vector, warm: by its name, as an indirect parameter."""
    bundle = Bundle(models[request.param])
    bundle.warm_up()
    return bundle
