"""Items that training never saw: known by what they are."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console

from exporter.experiment import load
from exporter.export import write_bundle
from exporter.histories import Feeds
from exporter.models import Plan, create
from exporter.settings import TrainSettings
from exporter.trainer import Recipe, batches_of, step
from exporter.training import seed_everything
from stream_worker.bundle import Bundle, ItemRow
from stream_worker.content import Featuriser
from stream_worker.errors import BundleError, SettingsError
from tests.exporter.conftest import LENGTH, NOW, new_model, serving, write_events
from tests.exporter.conftest import catalogue as plain_catalogue
from tests.logs import log_of

KINDS, EACH = 4, 10
N = KINDS * EACH
COLD = N - 1  # of the last kind; nobody ever met it


def kinds() -> pl.DataFrame:
    rows = [f"kind{row // EACH} thing{row}" for row in range(N)]
    return pl.DataFrame({"item": [f"i{row}" for row in range(N)], "title": rows})


@pytest.fixture(scope="module", params=["dot", "cosine", "bilinear"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Users stay with one kind of item; exported after a few epochs."""
    rng = np.random.default_rng(0)
    kind_U = rng.integers(0, KINDS, 300)
    item_UE = kind_U[:, None] * EACH + rng.integers(0, EACH, (300, 12))
    log = log_of(np.repeat(np.arange(300), 12), np.where(item_UE == COLD, COLD - 1, item_UE).ravel())
    featurise = Featuriser.fit([(title, {}) for title in kinds()["title"]], buckets=128)
    content_NF = torch.from_numpy(featurise([(title, {}) for title in kinds()["title"]]))
    seed_everything(0)
    model = create("two-tower", Plan(N, log, LENGTH, dim=16, dropout=0.1, content_NF=content_NF, score=request.param))
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(8):
        for feeds, target_BL in batches_of(log, LENGTH, 32, rng):
            step(model, optimiser, feeds, target_BL, Recipe().clip)
    return Bundle(write_bundle(tmp_path_factory.mktemp("bundle"), model.eval(), kinds(), serving(), NOW, featurise))


def list_of(bundle: Bundle, history: list[int]) -> list[int]:
    """The list of a user with this history."""
    items_BL = np.full((1, LENGTH), -1, np.int32)
    items_BL[0, -len(history) :] = history
    feeds: Feeds = {
        "history_items": items_BL,
        "history_actions": (items_BL >= 0).astype(np.uint8),
        "excluded_items": np.full((1, 1), -1, np.int32),
    }
    return [int(row) for row in bundle.infer(feeds)["items"][0]]


def test_an_item_that_nobody_met_is_recommended_to_those_who_like_its_kind(trained: Bundle) -> None:
    bias = trained.items.tensors["item_bias"]
    last = list(range((KINDS - 1) * EACH, (KINDS - 1) * EACH + 6))
    hidden = [row for row in range(N) if row // EACH == KINDS - 1 and row != COLD]
    only = bias.copy()
    only[hidden] = -np.inf  # of its kind it alone is left
    trained.items.tensors["item_bias"] = only
    try:
        assert list_of(trained, last)[0] == COLD
        assert list_of(trained, [0, 1, 2, 3])[0] != COLD
    finally:
        trained.items.tensors["item_bias"] = bias


def test_the_item_encoder_gives_a_new_item_the_vector_that_training_would_have(trained: Bundle) -> None:
    rows = trained.encode_items([trained.rows[COLD], ItemRow("new", "kind2 thing-never-seen")])
    np.testing.assert_allclose(rows["item_vectors"][0], trained.items.tensors["item_vectors"][COLD], atol=1e-5)
    np.testing.assert_allclose(rows["item_bias"][0], trained.items.tensors["item_bias"][COLD], atol=1e-5)
    vectors = trained.items.tensors["item_vectors"]
    products = vectors @ rows["item_vectors"][1]
    of_its_kind = products[2 * EACH : 3 * EACH].mean()
    assert of_its_kind > max(products[:EACH].mean(), products[EACH : 2 * EACH].mean(), products[3 * EACH :].mean())


def test_a_model_that_knows_no_content_says_so(tmp_path: Path) -> None:
    bundle = Bundle(write_bundle(tmp_path, new_model("popularity"), plain_catalogue(), serving(), NOW))
    with pytest.raises(BundleError, match="knows no item by its content"):
        bundle.encode_items([ItemRow("new")])


def test_content_is_made_for_models_that_read_it_alone(tmp_path: Path) -> None:
    """4 KB an item: of a million items as much as a node has."""
    items = tmp_path / "items.jsonl"
    items.write_text("".join(f'{{"item": "i{n}", "title": "Item {n}"}}\n' for n in range(31)))
    files: dict[str, Any] = {"events": write_events(tmp_path / "events.csv"), "items": items, "out": tmp_path / "out"}
    quiet = Console(quiet=True)
    made = {
        model: load(TrainSettings(model=model, **files), quiet).content_NF is not None
        for model in ("hybrid", "sasrec", "tower-hybrid", "two-tower", "ncf")
    }
    assert made == {"hybrid": False, "sasrec": False, "tower-hybrid": True, "two-tower": True, "ncf": True}
    with pytest.raises(SettingsError, match="--content-vectors: hybrid knows no item by its content"):
        load(TrainSettings(model="hybrid", content_vectors="vector", **files), quiet)
