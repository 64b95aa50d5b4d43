"""Where a model trains, and in what precision: the CPU in float32, or a GPU in bfloat16 where it has that.

Weights, optimiser and average are float32 in either case; what bfloat16 halves is the forward pass and the loss
(Micikevicius et al., "Mixed Precision Training", ICLR 2018; bfloat16 has float32's range and needs no loss scaling).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from stream_worker.errors import SettingsError


@dataclass(frozen=True)
class Device:
    """What torch is told.

    Attributes:
        name: cpu or cuda.
        bf16: whether the forward pass and the loss run in bfloat16 where torch deems it safe (autocast).
    """

    name: str = "cpu"
    bf16: bool = False

    def __str__(self) -> str:
        """For a person."""
        return f"{self.name} ({'bf16' if self.bf16 else 'fp32'})"

    @contextmanager
    def forward(self) -> Iterator[None]:
        """What the forward pass and the loss stand in: tensors that a model makes are made on the device, too."""
        if self.name != "cpu":  # the default already; said again, it would cost each call of torch a little
            with torch.device(self.name), self._autocast():
                yield
        else:
            with self._autocast():
                yield

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        if not self.bf16:
            yield
            return
        with torch.autocast(self.name, torch.bfloat16):
            yield


def chosen(device: str, bf16: bool | None) -> Device:
    """The device that `--device` and `--bf16` ask for.

    Args:
        device: cpu, cuda, or auto: cuda where there is one.
        bf16: None means where it pays: on a GPU that has it, not on the CPU.

    Raises:
        SettingsError: it is not there, or cannot do that.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise SettingsError(
            "--device cuda: torch sees no CUDA device. Look at its driver (nvidia-smi), or leave the flag out."
        )
    if device == "cpu" or not available:
        return Device("cpu", bool(bf16))
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if bf16 and not has_bf16:
        raise SettingsError("--bf16: this GPU has no bfloat16 (compute capability below 8). Leave the flag out.")
    return Device("cuda", has_bf16 if bf16 is None else bf16)
