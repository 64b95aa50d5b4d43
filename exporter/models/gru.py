"""A GRU over left-aligned sequences of different lengths that exports as ONNX's own GRU operator.

Unrolled, fifty steps take a minute and a half to export, and run slower. Torch has no operator that stops at each
row's own length, so this is one of ours, with a translation.

Axes: B sequences, M steps, D input size, S hidden size.
"""

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset20 as op
from torch import Tensor, nn


@torch.library.custom_op("stream_worker::gru", mutates_args=())
def last_hidden(
    x_MBD: Tensor, length_B: Tensor, hidden_BS: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor
) -> Tensor:
    """The hidden state after each sequence's own length, float32 [B, S].

    The weights are in ONNX's layout: gates update, reset, new.

    Args:
        x_MBD: float32.
        length_B: int32, at least 1.
        hidden_BS: float32, before the first step.
        weight_ih: [3S, D]; weight_hh: [3S, S].
        bias: [6S], of the input and of the hidden state.
    """
    bias_ih, bias_hh = bias.chunk(2)
    hidden_BS = hidden_BS.clone()
    for step, x_BD in enumerate(x_MBD):
        input_z, input_r, input_n = (x_BD @ weight_ih.T + bias_ih).chunk(3, 1)
        hidden_z, hidden_r, hidden_n = (hidden_BS @ weight_hh.T + bias_hh).chunk(3, 1)
        update_BS = torch.sigmoid(input_z + hidden_z)
        new_BS = torch.tanh(input_n + torch.sigmoid(input_r + hidden_r) * hidden_n)
        stepped_BS = (1 - update_BS) * new_BS + update_BS * hidden_BS
        hidden_BS = torch.where((step < length_B)[:, None], stepped_BS, hidden_BS)
    return hidden_BS


@last_hidden.register_fake
def _shape(x_MBD: Tensor, length_B: Tensor, hidden_BS: Tensor, *_: Tensor) -> Tensor:
    return torch.empty_like(hidden_BS)


def _to_onnx(x: Any, length: Any, hidden: Any, weight_ih: Any, weight_hh: Any, bias: Any) -> Any:
    axis: Any = op.Constant(value_ints=[0])
    _, last = op.GRU(
        x,
        op.Unsqueeze(weight_ih, axis),
        op.Unsqueeze(weight_hh, axis),
        op.Unsqueeze(bias, axis),
        length,
        op.Unsqueeze(hidden, axis),
        hidden_size=hidden.shape[1],
        linear_before_reset=1,
    )
    return op.Squeeze(last, axis)


def step_through(gru: nn.GRU, x_BMD: Tensor, length_B: Tensor, hidden_BS: Tensor) -> Tensor:
    """The hidden state of a one-layer `nn.GRU` after each left-aligned sequence; unchanged where the length is 0."""
    weight_ih, weight_hh, bias_ih, bias_hh = (_zrn(weight) for weight in gru.all_weights[0])
    x_MBD, steps_B = x_BMD.transpose(0, 1).contiguous(), length_B.clamp(min=1).int()
    last_BS = last_hidden(x_MBD, steps_B, hidden_BS, weight_ih, weight_hh, torch.cat([bias_ih, bias_hh]))
    return torch.where(length_B[:, None] > 0, last_BS, hidden_BS)


def _zrn(weight: Tensor) -> Tensor:
    """Torch's order of gates is reset, update, new; ONNX's is update, reset, new."""
    reset, update, new = weight.chunk(3)
    return torch.cat([update, reset, new])


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.stream_worker.gru.default: _to_onnx}
