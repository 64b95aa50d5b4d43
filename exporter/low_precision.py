"""Surgery on a bundle's graph: weights in 8 bits with a scale a channel, candidates from items in 8 or 16 bits.

Activations stay float32, but for the user's row where candidates are found (exporter/topk.py).

Axes: N items, D item dimension, C output channels.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from exporter.topk import define_float16, define_int8
from stream_worker.low_precision import ITEM_HALVES, ITEM_SCALES, ITEM_STEPS, TINY

WEIGHT_STEPS = 127

MOVES = frozenset({"Concat", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"})

# Where the weights of an operator stand, and along which axis its outputs run (None: the operator's transB says).
WEIGHTS: dict[str, dict[int, int | None]] = {
    "MatMul": {0: 0, 1: 1},
    "Gemm": {1: None},
    "GRU": {1: 1, 2: 1},
    "LSTM": {1: 1, 2: 1},
}


def weights_to_int8(model: onnx.ModelProto) -> int:
    """Store the weights of the encoder as int8 with a scale a channel; the graph dequantises them.

    Weights are the float32 matrices that MatMul, Gemm, GRU or LSTM multiply by.

    Returns:
        How many there are.
    """
    graph = model.graph
    _gather_constants(graph)
    stored = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    axes: dict[str, int] = {}
    for node in graph.node:
        for place, axis in WEIGHTS.get(node.op_type, {}).items():
            name = node.input[place]
            # A GRU's have a leading axis of directions.
            if name in stored and len(stored[name].dims) == (3 if node.op_type in ("GRU", "LSTM") else 2):
                axes.setdefault(name, axis if axis is not None else 1 - _attributes(node).get("transB", 0))
    nodes = []
    for name, axis in axes.items():
        steps, scale_C = _quantize_channels(numpy_helper.to_array(stored[name]), axis)
        graph.initializer.remove(stored[name])
        graph.initializer.append(numpy_helper.from_array(steps, f"{name}.int8"))
        graph.initializer.append(numpy_helper.from_array(scale_C, f"{name}.scale"))
        # The output has the weight's old name: what reads it need not change.
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}.int8", f"{name}.scale"], [name], axis=axis))
    _set_nodes(graph, [*nodes, *graph.node])
    return len(axes)


def items_to_int8(model: onnx.ModelProto, block: int) -> bool:
    """Let the graph find candidates by `item_steps` uint8 [N, D] and `item_scales` float32 [N].

    Args:
        block: items scored at a time; other numbers of rows than its multiples are scored in float32.

    Returns:
        Whether its lists come of a product of users and items, so that it can.
    """
    axes = _item_axes(model)
    if axes is None or not define_int8(model, block, ITEM_STEPS, ITEM_SCALES):
        return False
    steps_ND = helper.make_tensor_value_info(ITEM_STEPS, TensorProto.UINT8, axes)
    scale_N = helper.make_tensor_value_info(ITEM_SCALES, TensorProto.FLOAT, axes[:1])
    model.graph.input.extend([steps_ND, scale_N])
    return True


def items_to_float16(model: onnx.ModelProto) -> bool:
    """Let the graph find candidates by `item_halves` float16 [N, D], where N is a multiple of `topk.CHUNK`.

    Returns:
        Whether its lists come of a product of users and items, so that it can.
    """
    axes = _item_axes(model)
    if axes is None or not define_float16(model, ITEM_HALVES):
        return False
    model.graph.input.append(helper.make_tensor_value_info(ITEM_HALVES, TensorProto.FLOAT16, axes))
    return True


def _item_axes(model: onnx.ModelProto) -> list[str | int] | None:
    """N and D of the item vectors, if it takes any."""
    for value in model.graph.input:
        if value.name == "item_vectors":
            axis_N, axis_D = value.type.tensor_type.shape.dim
            return [axis_N.dim_param, axis_D.dim_value]
    return None


def _gather_constants(graph: onnx.GraphProto) -> None:
    """Cut, join and turn weights here instead of in the graph: torch keeps the gates of a GRU in another order."""
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return  # a body of a loop may use any of them
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type in MOVES and all(name in known for name in node.input):
            moved = ReferenceEvaluator(node).run(None, {name: known[name] for name in node.input})
            known |= dict(zip(node.output, moved, strict=True))
        else:
            kept.append(node)
    used = {name for node in kept for name in node.input} | {value.name for value in graph.output}
    _set_nodes(graph, kept)
    del graph.initializer[:]
    graph.initializer.extend(numpy_helper.from_array(known[name], name) for name in sorted(used & known.keys()))


def _quantize_channels(weight: NDArray[Any], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8, and float32 [C], the scales along the axis."""
    others = tuple(other for other in range(weight.ndim) if other != axis)
    scale = np.maximum(np.abs(weight).max(axis=others, keepdims=True) / WEIGHT_STEPS, TINY).astype(np.float32)
    return np.rint(weight / scale).astype(np.int8), scale.ravel()


def _set_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]  # they may live in what goes
    del graph.node[:]
    graph.node.extend(copies)
    del graph.value_info[:]  # it speaks of tensors that are gone


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
