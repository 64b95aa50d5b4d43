"""Training on data with a known right answer."""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional

from exporter import experiment as experiment_module
from exporter.cli import main
from exporter.data import Columns, load_events
from exporter.evaluation import hit_rate, prequential, scorer_of
from exporter.experiment import load
from exporter.experiment import trained as trained_model
from exporter.histories import Horizon, Log
from exporter.models import Plan, Popularity, Recommender, create
from exporter.models.base import Tensors
from exporter.models.sampled import Sampling, sampled_softmax
from exporter.models.sasrec import SASRec
from exporter.settings import TrainSettings
from exporter.trainer import Recipe, Schedule, batches_of
from exporter.training import Course, fit, refit, seed_everything
from stream_worker.errors import DataError, SettingsError
from tests.exporter.conftest import write_events

pytestmark = pytest.mark.train

ITEMS = 31
HORIZON = Horizon(length=10)
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    """The items in a circle."""
    path = write_events(tmp_path_factory.mktemp("data") / "events.csv", users=200, items=ITEMS)
    events, _ = load_events(path, Columns())
    return Log.of(events, [f"i{row}" for row in range(ITEMS)], {"view": 1}, [])


def trained(log: Log, path: Path, seed: int, **recipe: float) -> tuple[torch.nn.Module, Course]:
    seed_everything(seed)
    model = create("sasrec", Plan(ITEMS, log, length=10, dim=32, dropout=0.1))
    settings = Recipe(seed=seed, learning_rate=0.005, **recipe)  # type: ignore[arg-type]
    return model, fit(model, log, int(len(log) * 0.9), HORIZON, settings, path / "best.pt", QUIET)


def test_sasrec_learns_the_circle_and_popularity_cannot(log: Log, tmp_path: Path) -> None:
    test = int(len(log) * 0.8)
    model, course = trained(log[:test], tmp_path, 0, max_epochs=40, patience=10)
    events_R = np.arange(test, len(log))
    rank_R = prequential(scorer_of(model), log, events_R, HORIZON)  # type: ignore[arg-type]
    popularity = prequential(scorer_of(create("popularity", Plan(ITEMS, log[:test]))), log, events_R, HORIZON)
    assert hit_rate(rank_R, 1) > 0.95
    assert hit_rate(popularity, 1) < 0.2
    assert course.losses[-1] < course.losses[0] / 2


def test_the_weights_of_the_best_epoch_are_kept(log: Log, tmp_path: Path) -> None:
    model, course = trained(log, tmp_path, 0, max_epochs=4, patience=4)
    assert len(course.ndcgs) == len(course.losses) == 4
    assert course.ndcgs[course.best - 1] == max(course.ndcgs)
    saved = torch.load(tmp_path / "best.pt", weights_only=True)
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())


def test_it_stops_when_validation_gets_no_better(log: Log, tmp_path: Path) -> None:
    _, course = trained(log, tmp_path, 0, max_epochs=200, patience=2)
    assert len(course.ndcgs) == course.better + 2 < 200


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(log: Log, tmp_path: Path) -> None:
    one, again, other = (trained(log, tmp_path, seed, max_epochs=2)[0].state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in ("items_ND", "positions_LD"))


def test_time_is_limited(log: Log, tmp_path: Path) -> None:
    _, course = trained(log, tmp_path, 0, max_epochs=10_000, patience=10_000, max_minutes=0.5 / 60)
    assert course.best >= 1
    assert course.seconds < 20


def untrained_copy(model: Recommender) -> Recommender:
    return copy.deepcopy(model)


def test_refit_trains_for_so_many_epochs(log: Log) -> None:
    seed_everything(0)
    plan = Plan(ITEMS, log, length=10, dim=16)
    model, untrained = create("sasrec", plan), create("sasrec", plan)
    assert not refit(untrained_copy(model), log, 10, 100_000, Recipe(max_minutes=0.1 / 60), QUIET), "out of time"
    assert refit(model, log, 10, 1, Recipe(), QUIET)
    assert not torch.equal(model.item_tensors()["item_vectors"], untrained.item_tensors()["item_vectors"])


def test_a_model_without_parameters_is_not_trained(log: Log, tmp_path: Path) -> None:
    model = create("popularity", Plan(ITEMS, log))
    course = fit(model, log, 10, HORIZON, Recipe(), tmp_path / "best.pt", QUIET)
    assert (course.best, course.losses) == (0, [])
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_train_on_is_said(tmp_path: Path) -> None:
    events = pl.DataFrame({"user": ["a", "b"], "item": ["x", "x"], "action": ["hide"] * 2, "time": [10**12, 10**12]})
    log = Log.of(events, ["x"], {"view": 1}, ["hide"])
    with pytest.raises(DataError, match="none is left to train on"):
        trained(log, tmp_path, 0)


def test_a_batch_pairs_each_event_with_the_next_and_the_empty_history_with_the_first(log: Log) -> None:
    feeds, target_BL = next(batches_of(log, 50, 16, np.random.default_rng(0)))
    history_BL = feeds["history_items"]
    assert history_BL.dtype == torch.int32
    assert target_BL.dtype == torch.int64
    assert history_BL.shape[1] == 12, "as wide as 11 events before a last one, and a column before them"
    both = (history_BL >= 0) & (target_BL >= 0)
    assert torch.equal((history_BL[both] + 1) % ITEMS, target_BL[both])
    assert ((target_BL >= 0).sum(1) - (history_BL >= 0).sum(1)).abs().max() <= 1
    first = (history_BL < 0) & (target_BL >= 0)
    assert (first.sum(1) == 1).all()


class Interrupted(SASRec):
    """Ctrl-C in the middle of an epoch."""

    steps_left = 10**9

    def loss(self, feeds: Tensors, target_BL: torch.Tensor) -> torch.Tensor:
        self.steps_left -= 1
        if self.steps_left < 0:
            raise KeyboardInterrupt
        return super().loss(feeds, target_BL)


def interruptible(log: Log, steps: int = 10**9) -> Interrupted:
    seed_everything(0)
    model = Interrupted(Plan(ITEMS, log, length=10, dim=16, dropout=0.2))
    model.steps_left = steps
    return model


def test_a_run_that_was_interrupted_ends_with_the_weights_of_one_that_was_not(log: Log, tmp_path: Path) -> None:
    recipe = Recipe(learning_rate=0.005, warmup_steps=30, decay_epochs=4, max_epochs=4, patience=4)
    split, paths = int(len(log) * 0.9), [tmp_path / "whole.pt", tmp_path / "broken.pt"]
    whole = interruptible(log)
    expected = fit(whole, log, split, HORIZON, recipe, paths[0], QUIET)
    with pytest.raises(KeyboardInterrupt):
        fit(interruptible(log, steps=35), log, split, HORIZON, recipe, paths[1], QUIET)
    again = interruptible(log)
    found = fit(again, log, split, HORIZON, recipe, paths[1], QUIET, resume=True)
    assert (found.losses, found.ndcgs, found.best) == (expected.losses, expected.ndcgs, expected.best)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in whole.state_dict().items())

    whole = interruptible(log)
    assert refit(whole, log, 10, 3, recipe, QUIET, paths[0])
    with pytest.raises(KeyboardInterrupt):
        refit(interruptible(log, steps=35), log, 10, 3, recipe, QUIET, paths[1])
    again = interruptible(log)
    assert refit(again, log, 10, 3, recipe, QUIET, paths[1], resume=True)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in whole.state_dict().items())


def test_a_checkpoint_of_another_run_is_refused_and_none_starts_anew(log: Log, tmp_path: Path) -> None:
    path, split = tmp_path / "best.pt", int(len(log) * 0.9)
    recipe = Recipe(max_epochs=1)
    fit(interruptible(log), log, split, HORIZON, recipe, path, QUIET, resume=True)
    with pytest.raises(SettingsError, match="other data or flags"):
        fit(interruptible(log), log, split, HORIZON, Recipe(learning_rate=0.1), path, QUIET, resume=True)
    with pytest.raises(SettingsError, match="other data or flags"):
        fit(interruptible(log), log, split - 1, HORIZON, recipe, path, QUIET, resume=True)
    longer = fit(interruptible(log), log, split, HORIZON, Recipe(max_epochs=2), path, QUIET, resume=True)
    assert len(longer.losses) == 2
    Path(f"{path}.fit").write_bytes(b"half")
    with pytest.raises(SettingsError, match="not readable"):
        fit(interruptible(log), log, split, HORIZON, recipe, path, QUIET, resume=True)


def test_no_list_is_tuned_to_hold_what_was_disliked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned_to: list[int] = []

    def tune(self: Recommender, validation: Iterable[tuple[Tensors, torch.Tensor]]) -> None:
        tuned_to.extend(int(target) for _, target_B in validation for target in target_B)

    monkeypatch.setattr(Popularity, "tune", tune)
    path = write_events(tmp_path / "events.csv")
    events = pl.read_csv(path).with_row_index("number")
    disliked = pl.when(pl.col("number") % 3 == 0).then(pl.lit("dislike")).otherwise(pl.lit("view"))
    events.with_columns(action=disliked).write_csv(path)
    settings = TrainSettings(events=path, out=tmp_path / "models", model="popularity", threads=1)
    experiment = load(settings, QUIET)
    trained_model(experiment, settings, QUIET)
    part = experiment.log[experiment.validation : experiment.test]
    assert part.negative_E.any()
    assert sorted(tuned_to) == sorted(part.item_E[~part.negative_E].tolist())


def test_runs_with_other_flags_have_checkpoints_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    events, out = write_events(tmp_path / "events.csv"), tmp_path / "models"
    flags = ["train", "--model", "sasrec", "--events", str(events), "--out", str(out), "--threads", "1", "--dim", "16"]
    flags += ["--max-epochs", "2", "--device", "cpu"]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(experiment_module, "refit", interrupt)
        assert main([*flags, "--dropout", "0.2"]) == 130
        assert "`train --resume` goes on" in capsys.readouterr().err
        assert main([*flags, "--dropout", "0.4"]) == 130
    left = sorted(path.name for path in out.iterdir())
    assert len({name.split(".checkpoint")[0] for name in left}) == 2, left
    assert main([*flags, "--dropout", "0.3", "--resume"]) == 2
    assert "of a run with other flags" in capsys.readouterr().err
    assert main([*flags, "--dropout", "0.4", "--resume", "--threads", "2"]) == 0
    assert "resume: after epoch 2" in capsys.readouterr().out
    assert {path.name for path in out.iterdir() if path.name.startswith(".")} < set(left)


def test_few_items_are_enough_for_hard_negatives(tmp_path: Path) -> None:
    for items in (1, 5, 64):
        path = write_events(tmp_path / "events.csv", items=items)
        log = Log.of(load_events(path, Columns())[0], [f"i{row}" for row in range(items)], {"view": 1}, [])
        seed_everything(0)
        model = create("ncf", Plan(items, log, length=10, dim=8))
        assert fit(model, log, int(len(log) * 0.9), HORIZON, Recipe(max_epochs=1), tmp_path / "best.pt", QUIET).losses


class Normalised(SASRec):
    """A model of one's own with a buffer that training changes."""

    name: ClassVar[str] = "normalised"

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.normalise = torch.nn.BatchNorm1d(1)

    def loss(self, feeds: Tensors, target_BL: torch.Tensor) -> torch.Tensor:
        self.normalise(feeds["history_times"].float().mean(1, keepdim=True) / 1e12)
        return super().loss(feeds, target_BL)


def test_buffers_of_a_model_go_with_its_weights(log: Log, tmp_path: Path) -> None:
    seed_everything(0)
    model = Normalised(Plan(ITEMS, log, length=10, dim=16))
    recipe = Recipe(max_epochs=2)
    fit(model, log, int(len(log) * 0.9), HORIZON, recipe, tmp_path / "best.pt", QUIET)
    mean = model.normalise.running_mean
    assert mean is not None
    assert mean.item() > 0.1, "the initial one is 0"


def test_the_step_size_rises_in_a_line_and_falls_in_a_cosine() -> None:
    schedule = Schedule(warmup=9, decay=4, floor=0.2)
    assert [schedule(steps, 0) for steps in (0, 4, 9, 500)] == pytest.approx([0.1, 0.5, 1, 1])
    assert [schedule(99, epochs) for epochs in (0, 2, 4, 40)] == pytest.approx([1, 0.6, 0.2, 0.2])
    assert Schedule()(0, 50) == 1


def test_tensorboard_shows_the_course_by_pass_also_of_a_run_that_went_on(log: Log, tmp_path: Path) -> None:
    split, recipe = int(len(log) * 0.9), Recipe(warmup_steps=15, max_epochs=3, patience=3)
    with pytest.raises(KeyboardInterrupt):  # in the third pass
        fit(interruptible(log, 35), log, split, HORIZON, recipe, tmp_path / "b.pt", QUIET, tensorboard=tmp_path / "tb")
    again = interruptible(log)
    course = fit(again, log, split, HORIZON, recipe, tmp_path / "b.pt", QUIET, resume=True, tensorboard=tmp_path / "tb")
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert sorted(events.Tags()["scalars"]) == ["learning_rate", "loss", "ndcg"]
    for name, expected in (("loss", course.losses), ("ndcg", course.ndcgs)):
        scalars = events.Scalars(name)
        assert [scalar.step for scalar in scalars] == [1, 2, 3]
        assert [scalar.value for scalar in scalars] == pytest.approx(expected)
    rates = [scalar.value for scalar in events.Scalars("learning_rate")]
    assert 0 < rates[0] < rates[1] == pytest.approx(recipe.learning_rate)


def test_the_sampled_softmax_is_on_average_the_full_one() -> None:
    torch.manual_seed(0)
    hidden_PD, vectors_ND, bias_N = torch.randn(64, 8), torch.randn(200, 8), torch.randn(200)
    target_P, share_N = torch.randint(0, 200, (64,)), torch.rand(200) + 0.05
    full = functional.cross_entropy(hidden_PD @ vectors_ND.T + bias_N, target_P)
    sampled = sampled_softmax(hidden_PD, target_P, vectors_ND, bias_N, share_N, 60_000)
    assert sampled.item() == pytest.approx(full.item(), rel=0.02)
    uniform = sampled_softmax(hidden_PD, target_P, vectors_ND, bias_N, torch.ones(200), 60_000)
    assert uniform.item() == pytest.approx(full.item(), rel=0.02)
    sums = [sampled_softmax(hidden_PD, target_P, vectors_ND, bias_N, share_N, 50).item() for _ in range(300)]
    assert np.mean(sums) == pytest.approx(full.item(), rel=0.15), "log of a mean: a little below"


def test_sasrec_learns_the_circle_from_a_sample_too(log: Log, tmp_path: Path) -> None:
    seed_everything(0)
    model = create("sasrec", Plan(ITEMS, log, length=10, dim=32, dropout=0.1))
    assert isinstance(model, Sampling)
    model.negatives = 12
    split = int(len(log) * 0.9)
    course = fit(model, log, split, HORIZON, Recipe(learning_rate=0.005, max_epochs=8), tmp_path / "b.pt", QUIET)
    assert max(course.ndcgs) > 0.6


def test_a_model_that_takes_no_sample_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = write_events(tmp_path / "events.csv")
    arguments = ["--events", str(events), "--model", "popularity", "--out", str(tmp_path / "out"), "--negatives", "9"]
    assert main(["train", *arguments]) == 2
    assert "--negatives: popularity takes no sample" in capsys.readouterr().err
