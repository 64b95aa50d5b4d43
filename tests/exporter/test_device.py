"""Where a model trains, and in what precision.

Nothing here needs a GPU but the last test, which trains on one where there is one. Placement is tested on torch's
device `meta`, which computes nothing and refuses, as a GPU does, what mixes it with tensors of the CPU.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.fx.experimental import _config as meta

from exporter.cli import main
from exporter.device import Device, chosen
from exporter.histories import Horizon
from exporter.models import REGISTRY, Plan, Recommender, create
from exporter.models.sampled import Sampling
from exporter.trainer import Recipe, Trainer, batches_of, step
from exporter.training import Course, fit, refit, seed_everything
from stream_worker.errors import SettingsError
from tests.exporter.conftest import write_events
from tests.logs import random_log

pytestmark = pytest.mark.train

N, LENGTH = 100, 10
LEARNERS = ("gru4rec", "ncf", "sasrec", "streaming-transformer", "two-tower")
BF16 = Device("cpu", bf16=True)
HAS_CUDA = torch.cuda.is_available()
QUIET = Console(quiet=True)
LOG = random_log(0, N)
SPLIT = int(len(LOG) * 0.9)
HORIZON = Horizon(LENGTH)


def learner(name: str, content: bool = False, repeats: bool = False, negatives: int = 0) -> Recommender:
    seed_everything(0)
    content_NF = torch.rand(N, 7) if content else None
    plan = Plan(N, LOG, LENGTH, dim=16, dropout=0.1, repeats=repeats, content_NF=content_NF, action_embeddings=True)
    model = create(name, plan).learner
    if negatives:
        assert isinstance(model, Sampling)
        model.negatives = negatives
    return model


def test_every_learner_of_the_zoo_is_among_those_tested() -> None:
    plan = Plan(N, LOG, LENGTH, dim=16)
    learners = {type(create(name, plan).learner) for name in REGISTRY if list(create(name, plan).learner.parameters())}
    assert {cls.name for cls in learners} == set(LEARNERS)


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize(
    "options", [{}, {"repeats": True}, {"content": True}, {"negatives": 9}, {"negatives": 9, "repeats": True}], ids=str
)
def test_a_step_makes_nothing_beside_the_device(name: str, options: dict[str, int]) -> None:
    if "negatives" in options and not isinstance(learner(name), Sampling):
        return
    model = learner(name, **options).to("meta")  # type: ignore[arg-type]
    feeds, target_BL = next(batches_of(LOG, model.window or LENGTH, 8, np.random.default_rng(0)))
    moved = {key: tensor.to("meta") for key, tensor in feeds.items()}
    optimiser = torch.optim.AdamW(model.parameters())
    # Without values, masks must be taken to select everything for shapes to be known.
    with meta.patch(meta_nonzero_assume_all_nonzero=True):  # type: ignore[attr-defined]
        loss = step(model, optimiser, moved, target_BL.to("meta"), 5.0, Device("meta"))
    assert loss.device.type == "meta"
    assert all(state["exp_avg"].device.type == "meta" for state in optimiser.state.values())


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("options", [{}, {"repeats": True}, {"content": True}], ids=str)
def test_in_bfloat16_the_loss_is_nearly_the_same_and_the_weights_stay_float32(
    name: str, options: dict[str, bool]
) -> None:
    losses = {}
    for device in (Device(), BF16):
        trainer = Trainer(model := learner(name, **options), LOG, LENGTH, Recipe(device=device))
        batches = batches_of(LOG, model.window or LENGTH, 32, np.random.default_rng(0))
        torch.manual_seed(1)  # of dropout, and of ncf's negatives
        losses[device] = [trainer.step(*batch).item() for batch, _ in zip(batches, range(3), strict=False)]
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == {
            torch.float32
        }
    assert losses[BF16] == pytest.approx(losses[Device()], rel=0.01)
    assert losses[BF16] != losses[Device()], "it did run in another precision"


class Interrupted(Exception):
    """As Ctrl-C, from the console."""


class Until(Console):
    """A console that interrupts after so many lines."""

    def __init__(self, lines: int) -> None:
        super().__init__(quiet=True)
        self.lines = lines

    def print(self, *_: object, **__: object) -> None:
        self.lines -= 1
        if self.lines == 0:
            raise Interrupted


def run(device: Device, path: Path, console: Console = QUIET, resume: bool = False) -> tuple[Recommender, Course]:
    recipe = Recipe(learning_rate=0.005, max_epochs=3, patience=3, device=device)
    seed_everything(0, device)
    model = create("sasrec", Plan(N, LOG, LENGTH, dim=16, dropout=0.2))
    return model, fit(model, LOG, SPLIT, HORIZON, recipe, path, console, resume)


def weights(model: Recommender) -> dict[str, torch.Tensor]:
    assert all(tensor.device.type == "cpu" for tensor in model.state_dict().values())
    return model.state_dict()


@pytest.mark.parametrize(
    "device",
    [
        BF16,
        pytest.param(Device("cuda"), marks=pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device")),
        pytest.param(Device("cuda", bf16=True), marks=pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device")),
    ],
    ids=str,
)
def test_the_same_seed_gives_the_same_weights_interrupted_or_not(device: Device, tmp_path: Path) -> None:
    model, course = run(device, tmp_path / "whole.pt")
    again, _ = run(device, tmp_path / "again.pt")
    with pytest.raises(Interrupted):
        run(device, tmp_path / "broken.pt", Until(2))
    resumed, found = run(device, tmp_path / "broken.pt", resume=True)
    assert (found.losses, found.ndcgs, found.best) == (course.losses, course.ndcgs, course.best)
    for other in (again, resumed):
        assert all(torch.equal(weights(other)[name], value) for name, value in weights(model).items())
    _, plain = run(Device(), tmp_path / "plain.pt")
    assert course.losses == pytest.approx(plain.losses, rel=0.02)
    assert refit(model, LOG, LENGTH, 1, Recipe(device=device), QUIET)
    weights(model)


def test_a_run_does_not_go_on_in_another_precision(tmp_path: Path) -> None:
    run(BF16, tmp_path / "b.pt")
    with pytest.raises(SettingsError, match="other data or flags"):
        run(Device(), tmp_path / "b.pt", resume=True)


@pytest.mark.skipif(HAS_CUDA, reason="there is a CUDA device")
def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused_before_the_data_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chosen("auto", None) == chosen("cpu", None) == chosen("auto", False) == Device("cpu", bf16=False)
    assert chosen("auto", True) == BF16
    arguments = ["--events", "absent.csv", "--out", str(tmp_path), "--device", "cuda"]
    assert main(["train", *arguments]) == 2
    assert "--device cuda: torch sees no CUDA device" in capsys.readouterr().err


def test_the_command_says_where_it_trained_and_how(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = write_events(tmp_path / "events.csv")
    arguments = ["--events", str(events), "--out", str(tmp_path / "out"), "--model", "sasrec", "--dim", "16"]
    small = ["--length", "10", "--max-epochs", "1", "--no-refit", "--threads", "1", "--list-length", "5"]
    assert main(["train", *arguments, *small, "--device", "cpu", "--bf16"]) == 0
    assert "training on cpu (bf16)" in capsys.readouterr().out
