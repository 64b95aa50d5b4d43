"""Surgery on a bundle's graph: weights and item vectors in 8 bits, each row or channel with a scale of its own.

Activations stay float32, but for the user's row in the product with the items, which has its own scale as well: a scale
over the batch (DynamicQuantizeLinear) would make a user's list depend on who else is in it.

The items are uint8 around a zero point, and stand on the left of the product, because that is what ONNX Runtime
multiplies fast on x86 without copying: rows of items lie in memory as a left side wants them, and a signed left side
takes its slow path. The user's row has 7 bits: where the CPU has no VNNI, two products are added in 16 bits with
saturation, and 2 * 255 * 64 still fits.

Axes: B users, L history length, N items, D item dimension, C output channels.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from stream_worker.errors import BundleError

ITEM_VECTORS, ITEM_SCALES = "item_vectors", "item_scales"
ZERO_POINT = 128  # of the items
WEIGHT_STEPS = 127
USER_STEPS = 64
TINY = 1e-12  # a row of zeros has a scale, too

CONSTANTS: dict[str, NDArray[Any]] = {
    "zero_point": np.array(ZERO_POINT, np.uint8),
    "one": np.array(1, np.float32),
    "last": np.array([-1], np.int64),
    "tiny": np.array(TINY, np.float32),
    "user_steps": np.array(USER_STEPS, np.float32),
}
MOVES = frozenset({"Concat", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"})

# Where the weights of an operator stand, and along which axis its outputs run (None: the operator's transB says).
WEIGHTS: dict[str, dict[int, int | None]] = {
    "MatMul": {0: 0, 1: 1},
    "Gemm": {1: None},
    "GRU": {1: 1, 2: 1},
    "LSTM": {1: 1, 2: 1},
}


def quantize_rows(vectors_ND: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Items in 8 bits: uint8 [N, D] and float32 [N]; a vector is (uint8 - 128) * scale."""
    scale_N = np.abs(vectors_ND).max(axis=1) / np.float32(WEIGHT_STEPS)
    steps_ND = np.rint(vectors_ND / np.maximum(scale_N, np.float32(TINY))[:, None])
    return (steps_ND + ZERO_POINT).astype(np.uint8), scale_N.astype(np.float32)


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


def items_to_int8(model: onnx.ModelProto, where: str) -> list[str]:
    """Let the graph take `item_vectors` uint8 [N, D] and `item_scales` float32 [N] in place of float vectors.

    Args:
        where: what an error calls the model.

    Returns:
        The tensors [B, D] with the users' rows in steps, not yet rounded.

    Raises:
        BundleError: a node uses the item vectors in a way that is not known here.
    """
    inferred = onnx.shape_inference.infer_shapes(model).graph
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in (*inferred.value_info, *inferred.input)}
    graph = model.graph
    transposed = {
        node.output[0]
        for node in graph.node
        if node.op_type == "Transpose" and node.input[0] == ITEM_VECTORS and _attributes(node).get("perm") == [1, 0]
    }
    nodes: list[onnx.NodeProto] = []
    stepped: list[str] = []
    for node in graph.node:
        if not {ITEM_VECTORS, *transposed}.intersection(node.input) or node.op_type == "Shape":
            nodes.append(node)
        elif node.op_type == "Gather" and node.input[0] == ITEM_VECTORS and _attributes(node).get("axis", 0) == 0:
            nodes += _gathered(node)
        elif _scores_all(node, transposed) and ranks.get(node.input[0]) == 2:
            nodes += _scored(node)
            stepped.append(_inner(node, "steps"))
        elif node.output[0] not in transposed:
            raise BundleError(
                f"{where}: node {node.name or node.output[0]!r} ({node.op_type}) uses {ITEM_VECTORS} in a way that "
                "quantize does not know. Take --no-items-int8, and only the weights are quantised."
            )
    _set_nodes(graph, nodes)
    _retype_inputs(graph)
    graph.initializer.extend(numpy_helper.from_array(value, f"items.{name}") for name, value in CONSTANTS.items())
    return stepped


def with_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """A copy that gives these float32 [B, D] tensors, too."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", None]) for name in names)
    return copy


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


def _scores_all(node: onnx.NodeProto, transposed: set[str]) -> bool:
    """Whether it is users [B, D] times all items: MatMul or Gemm of the transposed vectors, or Gemm with transB."""
    attributes = _attributes(node)
    if node.op_type == "MatMul":
        return node.input[0] not in transposed and node.input[1] in transposed
    if node.op_type != "Gemm" or attributes.get("transA", 0):
        return False
    plain = attributes.get("alpha", 1.0) == 1.0 == attributes.get("beta", 1.0)
    right = node.input[1] == ITEM_VECTORS if attributes.get("transB", 0) else node.input[1] in transposed
    return plain and right and not {ITEM_VECTORS, *transposed}.intersection((node.input[0], *node.input[2:]))


def _gathered(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Rows of items, dequantised."""
    rows, floats, scale, scale_1 = (_inner(node, part) for part in ("rows", "floats", "scale", "scale_1"))
    yield helper.make_node("Gather", [ITEM_VECTORS, node.input[1]], [rows])
    yield helper.make_node("DequantizeLinear", [rows, "items.one", "items.zero_point"], [floats])
    yield helper.make_node("Gather", [ITEM_SCALES, node.input[1]], [scale])
    yield helper.make_node("Unsqueeze", [scale, "items.last"], [scale_1])
    yield helper.make_node("Mul", [floats, scale_1], [node.output[0]])


def _scored(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Each user's row in steps of its own, times all items in integers, times both scales, plus Gemm's addend."""
    user, score = node.input[0], node.output[0]
    addend = node.input[2] if len(node.input) > 2 else ""

    def step(op: str, inputs: list[str], part: str, **attributes: Any) -> onnx.NodeProto:
        """Inputs with a leading dot are other parts."""
        inputs = [_inner(node, name[1:]) if name.startswith(".") else name for name in inputs]
        return helper.make_node(op, inputs, [_inner(node, part) if part else score], **attributes)

    yield step("Abs", [user], "absolute")
    yield step("ReduceMax", [".absolute", "items.last"], "peak", keepdims=1)
    yield step("Max", [".peak", "items.tiny"], "peak_or_tiny")
    yield step("Div", [".peak_or_tiny", "items.user_steps"], "scale")
    yield step("Div", [user, ".scale"], "steps")
    yield step("Round", [".steps"], "rounded")
    yield step("Cast", [".rounded"], "user_BD", to=TensorProto.INT8)
    yield step("Transpose", [".user_BD"], "user_DB", perm=[1, 0])
    yield step("MatMulInteger", [ITEM_VECTORS, ".user_DB", "items.zero_point"], "sums_NB")
    yield step("DequantizeLinear", [".sums_NB", ITEM_SCALES], "floats_NB", axis=0)  # to float and by scale in one pass
    yield step("Transpose", [".floats_NB"], "floats_BN", perm=[1, 0])
    yield step("Mul", [".floats_BN", ".scale"], "product_BN" if addend else "")
    if addend:
        yield step("Add", [".product_BN", addend], "")


def _retype_inputs(graph: onnx.GraphProto) -> None:
    """`item_vectors` becomes uint8, and `item_scales` follows it."""
    inputs = []
    for value in graph.input:
        inputs.append(value)
        if value.name == ITEM_VECTORS:
            value.type.tensor_type.elem_type = TensorProto.UINT8
            axis_N = value.type.tensor_type.shape.dim[0].dim_param
            inputs.append(helper.make_tensor_value_info(ITEM_SCALES, TensorProto.FLOAT, [axis_N]))
    kept = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in inputs]
    del graph.input[:]
    graph.input.extend(kept)


def _set_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]  # they may live in what goes
    del graph.node[:]
    graph.node.extend(copies)
    del graph.value_info[:]  # it speaks of tensors that are gone


def _inner(node: onnx.NodeProto, part: str) -> str:
    return f"{node.output[0]}.{part}"


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
