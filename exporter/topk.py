"""The body of `stream_worker.Top` in the exported graph: the K best items by user · item + bias, exactly.

*Plain*: the product of all users with all items [B, N], the bias, -inf at what is excluded, and TopK over all of it.
Of a few thousand items nothing is faster, and of few users the product is read from memory as fast as it goes.

*In blocks*, above DENSE_ITEMS, where four passes over [B, N] in memory cost as much as half of the product: Scan takes
BLOCK items at a time without copying them, scores them while they lie in the cache, and keeps of each CHUNK of items
the highest score alone. The K best items lie in the K chunks with the highest maxima, ties broken by the lower row: an
item of the list has fewer than K items before it, and each chunk before its own holds one of them. The items of these
chunks are scored anew, and the list is theirs. Items stand on the left of the product: rows of them lie in memory as
ONNX Runtime's kernel wants a left side, and a right side is copied first. A batch of fewer than FEW users, and a
catalogue that is no whole number of blocks (the worker pads to whole ones), take the plain way.

*In 8 bits* (`exporter quantize`): as in blocks, but the maxima come of the product in integers, and the items of
RECALL x K chunks are scored anew in float32. Each user's row and each item's has a scale of its own: a scale over the
batch (DynamicQuantizeLinear) would make a list depend on who else is in it. Items are uint8 around a zero point, since
a signed left side takes ONNX Runtime's slow path; the user's row has 7 bits: where the CPU has no VNNI, two products
are added in 16 bits with saturation, and 2 * 255 * 64 still fits.

*In 16 bits* (the same command), for a GPU: the product of all users with all items in half precision, which reads and
writes half the memory, the maxima of its chunks, and the items of RECALL x K chunks scored anew in float32. Without
Scan or If, so that CUDA graphs can record it, and without an addition of several threads to one place. On a CPU the
items are widened in every run: it gives the same lists there, and takes longer.

Axes: B users, N items, D item dimension, X excluded items, K list length, S blocks, n items of a block, C chunks,
c items of a chunk, R chunks scored anew, E = R c items scored anew.
"""

import onnx
from onnx import TensorProto, helper

from stream_worker.low_precision import TINY, ZERO_POINT

DOMAIN, OPERATOR = "stream_worker", "Top"
DENSE_ITEMS = 50_000  # above, a graph goes by the entries it has, and never pass over pass of the catalogue
BLOCK = 4096
CHUNK = 16
FEW = 4
RECALL = 2
USER_STEPS = 64

SIGNATURE = "user_BD, vectors_ND, bias_N, excluded_BX"
QUANTISED, HALVES = "steps_ND, scale_N", "halves_ND"

COMMON = """
  none = Constant<value = float {{-inf}}>()
  nothing = Constant<value = float {{0}}>()
  zero = Constant<value_int = 0>()
  one = Constant<value_int = 1>()
  first = Constant<value_ints = [0]>()
  second = Constant<value_ints = [1]>()
  third = Constant<value_ints = [2]>()
  rest = Constant<value_ints = [-1]>()
  k = Constant<value_ints: ints = @k>()
  users = Shape<start = 0, end = 1>(user_BD)
  items = Shape<start = 0, end = 1>(vectors_ND)
  excluded_row_BX = Cast<to = 7>(excluded_BX)
  not_below_BX = GreaterOrEqual(excluded_row_BX, zero)
  not_above_BX = Less(excluded_row_BX, items)
  is_item_BX = And(not_below_BX, not_above_BX)
  excluded_addend_BX = Where(is_item_BX, none, nothing)
"""

PLAIN = """
  vectors_DN = Transpose<perm = [1, 0]>(vectors_ND)
  product_BN = MatMul(user_BD, vectors_DN)
  biased_BN = Add(product_BN, bias_N)
  excluded_at_BX = Where(is_item_BX, excluded_row_BX, zero)
  open_BN = ScatterElements<axis = 1, reduction = "add">(biased_BN, excluded_at_BX, excluded_addend_BX)
  {scores}, {rows} = TopK(open_BN, k)
"""

# The highest score of each chunk, of what is not excluded.
MAXIMA = """
  block_size = Constant<value_ints = [{block}]>()
  excluded_XB = Transpose<perm = [1, 0]>(excluded_row_BX)
  is_item_XB = Transpose<perm = [1, 0]>(is_item_BX)
  found_block_XB = Div(excluded_XB, block_size)
  excluded_block_XB = Where(is_item_XB, found_block_XB, rest)
  found_at_XB = Mod(excluded_XB, block_size)
  excluded_at_XB = Where(is_item_XB, found_at_XB, zero)
  blocks = Div(items, block_size)
  blocks_scalar = Squeeze(blocks)
  number_S = Range(zero, blocks_scalar, one)
  number_S1 = Unsqueeze(number_S, second)
  shape_Sn1 = Constant<value_ints = [-1, {block}, 1]>()
  bias_Sn1 = Reshape(bias_N, shape_Sn1)
  chunks_of_block = Constant<value_ints = [{chunks}, {chunk}]>()
  shape_CcB = Concat<axis = 0>(chunks_of_block, users)
  {prepare}
  maxima_SCB = Scan<num_scan_inputs = {count}, body = block (int64[1] number, float[{block}, 1] bias_n1, {inputs})
      => (float[{chunks}, B] maxima_CB) {{
    {score}
    is_here_XB = Equal(excluded_block_XB, number)
    addend_XB = Where(is_here_XB, none, nothing)
    open_nB = ScatterElements<axis = 0, reduction = "add">(biased_nB, excluded_at_XB, addend_XB)
    open_CcB = Reshape(open_nB, shape_CcB)
    maxima_CB = ReduceMax<keepdims = 0>(open_CcB, second)
  }}>(number_S1, bias_Sn1, {given})
  shape_allB = Concat<axis = 0>(rest, users)
  maxima_allB = Reshape(maxima_SCB, shape_allB)
  maxima_BC = Transpose<perm = [1, 0]>(maxima_allB)
"""

FLOAT: dict[str, str] = {
    "prepare": """
  user_DB = Transpose<perm = [1, 0]>(user_BD)
  block_shape = Constant<value_ints = [-1, {block}]>()
  dim = Shape<start = 1, end = 2>(vectors_ND)
  shape_SnD = Concat<axis = 0>(block_shape, dim)
  vectors_SnD = Reshape(vectors_ND, shape_SnD)""",
    "inputs": "float[{block}, D] vectors_nD",
    "given": "vectors_SnD",
    "count": "3",
    "score": """
    product_nB = MatMul(vectors_nD, user_DB)
    biased_nB = Add(product_nB, bias_n1)""",
}

# All of a user's scores are over the user's scale here, which changes no order and spares a pass.
INT8: dict[str, str] = {
    "prepare": """
  absolute_BD = Abs(user_BD)
  found_peak_B1 = ReduceMax<keepdims = 1>(absolute_BD, second)
  tiny = Constant<value_float = {tiny}>()
  peak_B1 = Max(found_peak_B1, tiny)
  user_steps = Constant<value_float = {user_steps}>()
  per_unit_B1 = Div(user_steps, peak_B1)
  stepped_BD = Mul(user_BD, per_unit_B1)
  rounded_BD = Round(stepped_BD)
  int8_BD = Cast<to = 3>(rounded_BD)
  user_DB = Transpose<perm = [1, 0]>(int8_BD)
  per_unit_1B = Transpose<perm = [1, 0]>(per_unit_B1)
  zero_point = Constant<value = uint8 {{{zero_point}}}>()
  block_shape = Constant<value_ints = [-1, {block}]>()
  dim = Shape<start = 1, end = 2>(vectors_ND)
  shape_SnD = Concat<axis = 0>(block_shape, dim)
  steps_SnD = Reshape(steps_ND, shape_SnD)
  scale_Sn = Reshape(scale_N, block_shape)""",
    "inputs": "uint8[{block}, D] steps_nD, float[{block}] scale_n",
    "given": "steps_SnD, scale_Sn",
    "count": "4",
    "score": """
    sums_nB = MatMulInteger(steps_nD, user_DB, zero_point)
    product_nB = DequantizeLinear<axis = 0>(sums_nB, scale_n)
    biased_nB = Gemm(bias_n1, per_unit_1B, product_nB)""",
}

# All entries of a user write -inf, those of padding once more at an excluded item; a user without any writes what is at
# row 0 to row 0.
FLOAT16 = """
  user_half_BD = Cast<to = 10>(user_BD)
  bias_half_N = Cast<to = 10>(bias_N)
  biased_BN = Gemm<transB = 1>(user_half_BD, halves_ND, bias_half_N)
  shape_B1 = Concat<axis = 0>(users, second)
  blank_B1 = Expand(rest, shape_B1)
  found_BX = Where(is_item_BX, excluded_row_BX, rest)
  marked_BX = Concat<axis = 1>(found_BX, blank_B1)
  last_B1 = ReduceMax<keepdims = 1>(marked_BX, second)
  has_excluded_B1 = GreaterOrEqual(last_B1, zero)
  instead_B1 = Max(last_B1, zero)
  is_marked_BX = GreaterOrEqual(marked_BX, zero)
  at_BX = Where(is_marked_BX, marked_BX, instead_B1)
  was_BX = GatherElements<axis = 1>(biased_BN, at_BX)
  none_half = Cast<to = 10>(none)
  put_BX = Where(has_excluded_B1, none_half, was_BX)
  open_BN = ScatterElements<axis = 1>(biased_BN, at_BX, put_BX)
  shape_BCc = Constant<value_ints = [0, -1, {chunk}]>()
  open_BCc = Reshape(open_BN, shape_BCc)
  maxima_BC = ReduceMax<keepdims = 0>(open_BCc, third)
"""

# The items of the R best chunks, by rising row so that of equal scores the lower row comes first.
ANEW = """
  chunks = Shape<start = 1, end = 2>(maxima_BC)
  times = Constant<value_ints = [{recall}]>()
  wanted = Mul(k, times)
  r = Min(wanted, chunks)
  maxima_BR, best_BR = TopK(maxima_BC, r)
  chunk_BR, order_BR = TopK<largest = 0>(best_BR, r)
  chunk_shape = Constant<value_ints = [-1, {chunk}]>()
  width = Shape<start = 1, end = 2>(vectors_ND)
  chunk_size = Constant<value_ints = [{chunk}]>()
  chunk_width = Mul(width, chunk_size)
  shape_CcD = Concat<axis = 0>(rest, chunk_width)
  vectors_CcD = Reshape(vectors_ND, shape_CcD)
  found_BRcD = Gather(vectors_CcD, chunk_BR)
  every = Constant<value_ints = [0, -1]>()
  shape_BED = Concat<axis = 0>(every, width)
  vectors_BED = Reshape(found_BRcD, shape_BED)
  user_BD1 = Unsqueeze(user_BD, third)
  product_BE1 = MatMul(vectors_BED, user_BD1)
  product_BE = Squeeze(product_BE1, third)
  bias_Cc = Reshape(bias_N, chunk_shape)
  bias_BRc = Gather(bias_Cc, chunk_BR)
  bias_BE = Reshape(bias_BRc, every)
  biased_BE = Add(product_BE, bias_BE)
  excluded_chunk_BX = Div(excluded_row_BX, chunk_size)
  excluded_chunk_BX1 = Unsqueeze(excluded_chunk_BX, third)
  chunk_B1R = Unsqueeze(chunk_BR, second)
  is_chunk_BXR = Equal(excluded_chunk_BX1, chunk_B1R)
  is_chunk_int_BXR = Cast<to = 6>(is_chunk_BXR)
  at_chunk_BX = ArgMax<axis = 2, keepdims = 0>(is_chunk_int_BXR)
  is_scored_int_BX = ReduceMax<keepdims = 0>(is_chunk_int_BXR, third)
  is_in_a_chunk_BX = Cast<to = 9>(is_scored_int_BX)
  is_scored_BX = And(is_in_a_chunk_BX, is_item_BX)
  scored_addend_BX = Where(is_scored_BX, none, nothing)
  at_start_BX = Mul(at_chunk_BX, chunk_size)
  in_chunk_BX = Mod(excluded_row_BX, chunk_size)
  at_item_BX = Add(at_start_BX, in_chunk_BX)
  open_BE = ScatterElements<axis = 1, reduction = "add">(biased_BE, at_item_BX, scored_addend_BX)
  {scores}, at_BK = TopK(open_BE, k)
  of_chunk_BK = Div(at_BK, chunk_size)
  in_chunk_BK = Mod(at_BK, chunk_size)
  chunk_BK = GatherElements<axis = 1>(chunk_BR, of_chunk_BK)
  start_BK = Mul(chunk_BK, chunk_size)
  {rows} = Add(start_BK, in_chunk_BK)
"""

EITHER = """
  size_of_block = Constant<value_ints = [{block}]>()
  left_over = Mod(items, size_of_block)
  is_whole = Equal(left_over, zero)
  few = Constant<value_int = {few}>()
  is_batch = GreaterOrEqual(users, few)
  in_blocks = And(is_whole, is_batch)
  scores_BK, rows_BK = If(in_blocks) <
    then_branch = blocks () => (float[B, K] block_scores_BK, int64[B, K] block_rows_BK) {{ {blocks} }},
    else_branch = plain () => (float[B, K] all_scores_BK, int64[B, K] all_rows_BK) {{ {plain} }}
  >
"""


def row_multiple(items: int) -> int:
    """What the rows of the item tensors must be a multiple of for the fast way."""
    return BLOCK if items > DENSE_ITEMS else 1


def define(model: onnx.ModelProto, items: int) -> None:
    """Give the operator its body, if the graph has it.

    Args:
        items: N.
    """
    body = _plain() if row_multiple(items) == 1 else _either(FLOAT, BLOCK, 1, FEW)
    _define(model, SIGNATURE, body)


def define_int8(model: onnx.ModelProto, block: int, steps: str, scales: str) -> bool:
    """Let it find its candidates in 8 bits.

    Args:
        block: items scored at a time, a multiple of CHUNK; of a catalogue of another size all are scored in float32.
        steps, scales: the graph's inputs uint8 [N, D] and float32 [N]: a vector is (uint8 - 128) * scale.

    Returns:
        Whether the graph has the operator.
    """
    return _redefine(model, [steps, scales], QUANTISED, _either(INT8, block, RECALL, 1))


def define_float16(model: onnx.ModelProto, halves: str) -> bool:
    """Let it find its candidates in 16 bits. Its catalogue is a multiple of CHUNK.

    Args:
        halves: the graph's input float16 [N, D].

    Returns:
        Whether the graph has the operator.
    """
    anew = ANEW.format(chunk=CHUNK, recall=RECALL, scores="scores_BK", rows="rows_BK")
    return _redefine(model, [halves], HALVES, COMMON.format() + FLOAT16.format(chunk=CHUNK) + anew)


def alone(dim: int, k: int) -> onnx.ModelProto:
    """A model that is nothing but the operator, yet without a body: for tests and benchmarks."""
    inputs = [
        helper.make_tensor_value_info("user", TensorProto.FLOAT, ["B", dim]),
        helper.make_tensor_value_info("item_vectors", TensorProto.FLOAT, ["N", dim]),
        helper.make_tensor_value_info("item_bias", TensorProto.FLOAT, ["N"]),
        helper.make_tensor_value_info("excluded_items", TensorProto.INT32, ["B", "X"]),
    ]
    outputs = [
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["B", k]),
        helper.make_tensor_value_info("items", TensorProto.INT64, ["B", k]),
    ]
    given, found = ([value.name for value in values] for values in (inputs, outputs))
    node = helper.make_node(OPERATOR, given, found, domain=DOMAIN, k=[k])
    graph = helper.make_graph([node], "top", inputs, outputs)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _define(model: onnx.ModelProto, signature: str, body: str) -> None:
    if not _nodes(model.graph):
        return
    kept = [function for function in model.functions if (function.domain, function.name) != (DOMAIN, OPERATOR)]
    text = (
        f'<opset_import: ["": 20], domain: "{DOMAIN}"> '
        f"{OPERATOR} <k> ({signature}) => (scores_BK, rows_BK) {{ {body} }}"
    )
    copies = [onnx.FunctionProto.FromString(function.SerializeToString()) for function in kept]
    del model.functions[:]
    model.functions.extend([*copies, onnx.parser.parse_function(text)])


def _redefine(model: onnx.ModelProto, inputs: list[str], signature: str, body: str) -> bool:
    """Give it more inputs and another body; whether the graph has it."""
    nodes = _nodes(model.graph)
    for node in nodes:
        node.input.extend(inputs)
    _define(model, f"{SIGNATURE}, {signature}", body)
    return bool(nodes)


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return [node for node in graph.node if (node.domain, node.op_type) == (DOMAIN, OPERATOR)]


def _plain() -> str:
    return COMMON.format() + PLAIN.format(scores="scores_BK", rows="rows_BK")


def _either(product: dict[str, str], block: int, recall: int, few: int) -> str:
    sizes: dict[str, object] = {"block": block, "chunk": CHUNK, "chunks": block // CHUNK}
    sizes |= {"user_steps": f"{USER_STEPS}.0", "tiny": TINY, "zero_point": ZERO_POINT}
    filled = {name: part.format(**sizes) for name, part in product.items()}
    maxima = MAXIMA.format(**sizes, **filled)
    anew = ANEW.format(**sizes, recall=recall, scores="block_scores_BK", rows="block_rows_BK")
    plain = PLAIN.format(scores="all_scores_BK", rows="all_rows_BK")
    return COMMON.format() + EITHER.format(block=block, few=few, blocks=maxima + anew, plain=plain)
