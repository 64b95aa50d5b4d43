"""What users disliked: learned from where the model can, never predicted, never recommended; and ratings as actions."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from exporter.data import Columns, load_events
from exporter.histories import Horizon, Log, feeds_before
from exporter.models import Plan, create
from exporter.trainer import Recipe, batches_of, step
from exporter.training import seed_everything
from stream_worker.errors import DataError
from tests.logs import START_MS

ITEMS = 12


def disliking_log(shows_negatives: bool) -> Log:
    """Whoever dislikes an even item goes on with odd ones, whoever dislikes an odd item with even ones."""
    rng = np.random.default_rng(0)
    users, each = 300, 8
    parity_U = rng.integers(0, 2, users)
    item_UE = 2 * rng.integers(0, ITEMS // 2, (users, each)) + parity_U[:, None]
    item_UE[:, 0] = 2 * rng.integers(0, ITEMS // 2, users) + 1 - parity_U
    action_UE = np.ones((users, each), np.uint8)
    action_UE[:, 0] = 255
    return Log(
        np.repeat(np.arange(users), each),
        item_UE.ravel(),
        action_UE.ravel(),
        (action_UE == 255).ravel(),
        START_MS + 60_000 * np.arange(users * each),
        shows_negatives,
    )


def test_a_dislike_speaks_against_its_like() -> None:
    log = disliking_log(shows_negatives=True)
    seed_everything(0)
    model = create("two-tower", Plan(ITEMS, log, 10, dim=8, dropout=0.0))
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.02)
    rng = np.random.default_rng(0)
    for _ in range(25):
        for feeds, target_BL in batches_of(log, 10, 32, rng):
            assert not (target_BL[:, 0] >= 0).any(), "a dislike is no target"
            step(model, optimiser, feeds, target_BL, Recipe().clip)
    model.eval()
    history = {"history_items": torch.tensor([[3]]), "history_actions": torch.tensor([[255]], dtype=torch.uint8)}
    with torch.inference_mode():
        scores_N = model.scores(history | {"excluded_items": torch.tensor([[-1]])}, model.item_tensors())[0]
    assert scores_N[0::2].mean() > scores_N[1::2].mean() + 1


def test_a_model_that_cannot_use_dislikes_sees_none() -> None:
    hidden, shown = disliking_log(shows_negatives=False), disliking_log(shows_negatives=True)
    second = np.array([1])
    horizon = Horizon(length=5)
    assert (feeds_before(hidden, second, horizon)["history_items"] == -1).all()
    assert (feeds_before(shown, second, horizon)["history_items"] >= 0).any()
    for log in (hidden, shown):
        feeds = feeds_before(log, second, horizon)
        assert log.item_E[0] in feeds["excluded_items"]
        assert Plan(ITEMS, log).counts_N.sum() == 300 * 7


def test_ratings_are_likes_views_and_dislikes(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    pl.DataFrame(
        {
            "user": [f"u{stars}" for stars in (1, 2, 3, 4, 5)] + ["none"],
            "item": "i",
            "time": 1_700_000_000,
            "rating": [1, 2, 3, 4, 5, None],
        }
    ).write_csv(path)
    events, _ = load_events(path, Columns(rating="rating"))
    assert dict(events.select("user", "action").iter_rows()) == {
        "u1": "dislike", "u2": "dislike", "u3": "view", "u4": "like", "u5": "like", "none": "view",
    }  # fmt: skip


def test_ratings_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    pl.DataFrame({"user": ["u"], "item": "i", "time": 1_700_000_000, "stars": "good"}).write_csv(path)
    with pytest.raises(DataError, match="'stars' holds ratings that are no numbers"):
        load_events(path, Columns(rating="stars"))
