"""One pass after the other over the windows of a log: the optimiser, its schedule, and all that a resume needs.

Axes: W windows, L history length.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from exporter.device import Device
from exporter.histories import Ints, Log, windows
from exporter.models.base import Recommender
from stream_worker.errors import DataError

CPU = Device()
BETAS = (0.9, 0.98)  # of SASRec's Adam
YOUNG = 4  # in the beginning the average reaches back over this part of the steps so far


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        seed: of the weights, the windows, their order and dropout.
        batch: windows in a batch; small ones suit small data.
        patience: epochs without a gain of NDCG@10 on the validation part after which training stops.
        warmup_steps, decay_epochs, decay_to: see `Schedule`.
        average_epochs: how far back the average of the weights reaches that is validated and kept.
        clip: largest norm of a step's gradients.
        max_minutes: of training; the same seed gives the same weights only where this does not cut it short.
        device: where, and in what precision.
    """

    seed: int = 0
    batch: int = 32
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    warmup_steps: int = 0
    decay_epochs: int = 0
    decay_to: float = 0.1
    average_epochs: float = 1.0
    clip: float = 5.0
    max_epochs: int = 100
    patience: int = 5
    max_minutes: float | None = None
    device: Device = CPU


class Schedule(NamedTuple):
    """The learning rate over time, as a share of its peak.

    Linear warm-up over `warmup` steps (Goyal et al. 2017), then a cosine from 1 to `floor` over `decay` epochs
    (Loshchilov & Hutter 2017), on which it stays. By epochs of the run, not by a share of it, as early stopping ends it
    nobody knows when, and so that the refit goes the same way. A `decay` of 0 keeps the peak.
    """

    warmup: int = 0
    decay: int = 0
    floor: float = 0.1

    def __call__(self, steps: int, epochs: float) -> float:
        """The share after so many steps, which are so many epochs."""
        share = min(1.0, (steps + 1) / (self.warmup + 1))
        if not self.decay:
            return share
        cosine = (1 + math.cos(math.pi * min(1.0, epochs / self.decay))) / 2
        return share * (self.floor + (1 - self.floor) * cosine)


class Trainer:
    """Trains a model in place, an epoch a call.

    The model to keep is `averaged`: an exponential moving average of the weights over about the last epoch (Polyak &
    Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992). It does what a falling learning rate does,
    at any epoch, without knowing which is the last. It stands on the CPU between epochs, to be validated and kept.

    Args:
        model: its parameters are trained, on the recipe's device, where it stays.
        log: what is fitted.
        length: L.
        recipe: how. Its seed is of the windows and their order; dropout draws from torch's own generator.

    Raises:
        DataError: there is nothing to fit.
    """

    def __init__(self, model: Recommender, log: Log, length: int, recipe: Recipe) -> None:
        if not log.known_E.any():
            raise DataError("events: none is left to train on. Give a longer log.")
        self._device = recipe.device
        self._model, self._log, self._length, self._recipe = model.to(self._device.name), log, length, recipe
        self._schedule = Schedule(recipe.warmup_steps, recipe.decay_epochs, recipe.decay_to)
        self._rng = np.random.default_rng(recipe.seed)
        self._optimiser = torch.optim.AdamW(
            model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=BETAS, fused=True
        )
        self.averaged = copy.deepcopy(model).cpu()
        self._reach = 1.0  # steps
        self.epochs = self.steps = 0  # done

    @property
    def learning_rate(self) -> float:
        """Of the last step."""
        return float(self._optimiser.param_groups[0]["lr"])

    def epoch(self, deadline: float, begin: Callable[[int], None], advance: Callable[[], None]) -> float:
        """One pass, or as much of it as the deadline leaves; the mean loss.

        Args:
            deadline: of `time.monotonic()`.
            begin: told how many batches there are.
            advance: called after each.

        Raises:
            DataError: the loss is not finite.
        """
        batches = list(batches_of(self._log, self._length, self._recipe.batch, self._rng))
        begin(len(batches))
        self._reach = self._recipe.average_epochs * len(batches)
        self.averaged.to(self._device.name)
        losses = []
        for number, (feeds, target_BL) in enumerate(batches):
            rate = self._recipe.learning_rate * self._schedule(self.steps, self.epochs + number / len(batches))
            for group in self._optimiser.param_groups:
                group["lr"] = rate
            losses.append(self.step(feeds, target_BL).item())
            advance()
            if time.monotonic() > deadline:
                break
        self.averaged.cpu()
        with torch.no_grad():  # such as the running mean of a normalisation, which has an average of its own
            for kept, buffer in zip(self.averaged.buffers(), self._model.buffers(), strict=True):
                kept.copy_(buffer)
        self.epochs += 1
        if not np.isfinite(losses).all():
            raise DataError(f"training: the loss is not finite in epoch {self.epochs}. Lower --learning-rate.")
        return float(np.mean(losses))

    def step(self, feeds: dict[str, Tensor], target_BL: Tensor) -> Tensor:
        """One step on a batch of `batches_of`, and one of the average; the loss before it."""
        feeds = {name: tensor.to(self._device.name) for name, tensor in feeds.items()}
        target_BL = target_BL.to(self._device.name)
        loss = step(self._model, self._optimiser, feeds, target_BL, self._recipe.clip, self._device)
        self._average()
        self.steps += 1
        return loss

    def state(self) -> dict[str, Any]:
        """Everything that the next epoch depends on; tensors and plain values, which load without pickle's dangers."""
        return {
            "model": self._model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "windows": json.dumps(self._rng.bit_generator.state),
            "torch": torch.get_rng_state(),
            "device": torch.cuda.get_rng_state() if self._device.name == "cuda" else None,
            "epochs": self.epochs,
            "steps": self.steps,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from there, as if there had been no interruption."""
        self._model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._rng.bit_generator.state = json.loads(state["windows"])
        torch.set_rng_state(state["torch"])
        if state["device"] is not None:
            torch.cuda.set_rng_state(state["device"])
        self.epochs, self.steps = state["epochs"], state["steps"]

    def _average(self) -> None:
        """Move the average towards the weights of this step; torch's AveragedModel would copy every buffer, too."""
        share = 1 / (1 + min(self._reach, self.steps / YOUNG))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self._model.parameters()), share)


def step(
    model: Recommender,
    optimiser: torch.optim.Optimizer,
    feeds: dict[str, Tensor],
    target_BL: Tensor,
    clip: float,
    device: Device = CPU,
) -> Tensor:
    """One step of the optimiser; the loss before it. Model and batch are on the device."""
    model.train()
    optimiser.zero_grad()
    with device.forward():
        loss = model.loss(feeds, target_BL)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimiser.step()
    return loss.detach()


def batches_of(
    log: Log, length: int, size: int, rng: np.random.Generator
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """One epoch of training batches: feeds of at most `size` windows, and target_BL int64, in random order."""
    events_WL = windows(log, length, rng)
    for start_rows in np.split(rng.permutation(len(events_WL)), np.arange(size, len(events_WL), size)):
        events = _trim(events_WL[start_rows])
        inputs, targets = events[:, :-1], events[:, 1:]
        feeds = {
            "history_items": np.where(inputs >= 0, log.item_E[inputs], -1).astype(np.int32),
            "history_actions": np.where(inputs >= 0, log.action_E[inputs], 0).astype(np.uint8),
            "history_times": np.where(inputs >= 0, log.time_E[inputs], 0),
        }
        target_BL = np.where((targets >= 0) & log.wanted_E[targets], log.item_E[targets], -1)
        yield {name: torch.from_numpy(array) for name, array in feeds.items()}, torch.from_numpy(target_BL)


def _trim(events_WL: Ints) -> Ints:
    """Drop leading columns that no window of the batch uses; one padding column stays for the empty history."""
    longest = int((events_WL >= 0).sum(axis=1).max())
    return events_WL[:, -min(events_WL.shape[1], longest + 1) :]
