"""Small data, and each model of the zoo exported once."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from exporter.export import Serving, write_bundle
from exporter.models import REGISTRY, Plan, Recommender, create
from exporter.training import seed_everything
from stream_worker.bundle import Bundle
from tests.logs import random_log

N, LENGTH, K = 40, 10, 5
NOW = datetime(2026, 1, 1, tzinfo=UTC)
CHANGED_BY_REPEATS = ("hybrid", "sasrec")
CODES = {"view": 1, "click": 2, "purchase": 4}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # two fight for the cores of a busy machine: forty times slower


def new_model(name: str, seed: int = 0, n: int = N, repeats: bool = False) -> Recommender:
    """A small model with weights large enough that users differ."""
    seed_everything(seed)
    model = create(name, Plan(n, random_log(seed, n), length=LENGTH, dim=16, repeats=repeats)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def catalogue(n: int = N) -> pl.DataFrame:
    """An items table."""
    rows = range(n)
    return pl.DataFrame(
        {"item": [f"i{row}" for row in rows], "title": "", "attributes": [{"year": 2000 + row} for row in rows]}
    )


def serving() -> Serving:
    """What the small bundles say."""
    return Serving(length=LENGTH, k=K, actions=CODES, excluding_actions=["purchase"], report={"hr@10": 0.5})


@pytest.fixture(scope="session", params=[*sorted(REGISTRY), *(f"{name} with repeats" for name in CHANGED_BY_REPEATS)])
def model(request: pytest.FixtureRequest) -> Recommender:
    """Each model of the zoo; those that are others where seen items may be listed, as both."""
    name, _, repeats = request.param.partition(" with ")
    return new_model(name, repeats=bool(repeats))


@pytest.fixture(scope="session")
def bundle(model: Recommender, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """That model, exported and loaded as a worker loads it."""
    out = tmp_path_factory.mktemp(model.name)
    return Bundle(write_bundle(out, model, catalogue(), serving(), NOW))


def write_events(path: Path, seed: int = 0, users: int = 60, per_user: int = 12, items: int = 31) -> Path:
    """A CSV whose users walk the items in a circle, each from a random place: the next item is certain."""
    rng = np.random.default_rng(seed)
    start = rng.integers(0, items, users)
    user, step = np.meshgrid(np.arange(users), np.arange(per_user), indexing="ij")
    frame = pl.DataFrame(
        {
            "user": np.char.add("u", user.ravel().astype(str)),
            "item": np.char.add("i", ((start[:, None] + step) % items).ravel().astype(str)),
            "time": (1_700_000_000 + step * 1000 + rng.integers(0, 900, user.shape)).ravel(),
        }
    )
    frame.write_csv(path)
    return path
