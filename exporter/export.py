"""From a trained model to a bundle: torch to ONNX, parity, and the directory that the worker loads.

Axes: B users, L history length, N items, D item dimension, X excluded items, K list length.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import onnx
import polars as pl
import torch
from torch import nn
from torch.export import Dim

from exporter import topk
from exporter.histories import Feeds
from exporter.models.base import FILLS, Graph, Recommender
from exporter.models.gru import TRANSLATIONS
from exporter.parity import check_parity, padded, random_feeds
from exporter.publish import publish, save_arrays
from stream_worker.content import Featuriser
from stream_worker.errors import BundleError
from stream_worker.inference import create_session
from stream_worker.manifest import (
    CONTENT,
    EXAMPLE,
    FEEDS,
    ITEM_ENCODER,
    ITEM_ROWS,
    ITEMS,
    MODEL,
    RING,
    SCHEMA,
    Buckets,
    Manifest,
    ResidentEntry,
    TensorEntry,
    padded_rows,
)

OPSET = 20
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PARITY_BATCH = 32  # the largest that is held to torch
LENGTH_BUCKETS = (8, 16, 32, 64, 128, 256)
NEW_BUCKETS = (1, 4, 16)
EXAMPLE_USERS = 7
EXAMPLE_EXCLUDED = 16


@dataclass(frozen=True)
class Serving:
    """What the manifest says besides the graph.

    Attributes:
        length: L.
        k: K.
        actions: action -> code.
        excluding_actions: an item with one of these is never recommended to the user again.
        exclude_seen: whether the items of the history are left out of the list.
        report: the key figures.
    """

    length: int
    k: int
    actions: dict[str, int]
    excluding_actions: list[str]
    exclude_seen: bool = True
    report: dict[str, float] = field(default_factory=dict)


def write_bundle(
    out: Path,
    model: Recommender,
    items: pl.DataFrame,
    serving: Serving,
    now: datetime,
    featuriser: Featuriser | None = None,
) -> Path:
    """Export the model, check it, and make it the current bundle of `out`.

    Args:
        out: the directory of bundles; made if it is not there.
        items: item, title and perhaps attributes (a struct), one row a row of the item tensors.
        now: the time of the export, UTC.
        featuriser: what made the content that the model was built from.

    Returns:
        The bundle's directory.

    Raises:
        BundleError: the graph does not export, differs from the model, or two items cannot be told apart.
    """

    def fill(beside: Path) -> Manifest:
        graph = Graph(model, serving.k).eval()
        inputs, outputs = export_onnx(graph, beside / MODEL, serving.length)
        codes = sorted(serving.actions.values())
        check_parity(graph, beside / MODEL, serving.length, PARITY_BATCH, codes)
        save_arrays(beside / ITEMS, {name: tensor.numpy() for name, tensor in _detached(model).items()})
        _write_item_rows(beside / ITEM_ROWS, items, featuriser.name if featuriser else "")
        if featuriser is not None and model.item_encoder is not None:
            featuriser.save(beside / CONTENT)
            export_item_encoder(model.item_encoder, beside / ITEM_ENCODER, featuriser.size)
        save_arrays(beside / EXAMPLE, _example(graph, beside / MODEL, serving.length, codes))
        return _manifest(graph, inputs, outputs, serving)

    return publish(out, fill, now)


def export_onnx(graph: Graph, path: Path, length: int) -> tuple[list[TensorEntry], list[TensorEntry]]:
    """Write the graph as one ONNX file with dynamic B, L, N and X.

    Args:
        graph: in evaluation mode.
        length: L, the longest history.

    Returns:
        The graph's inputs and outputs, for the manifest.

    Raises:
        BundleError: torch cannot export the model, an axis is frozen, or an input is not used.
    """
    tensors = padded(_detached(graph.model), graph.k)
    # B of the example is neither 1, which would be frozen, nor another axis's size.
    feeds = random_feeds(np.random.default_rng(0), graph.k, 3, min(2, length), 4, [1], graph.model.kept)
    arguments = [torch.from_numpy(feeds[name]) for name in graph.feeds] + list(tensors.values())
    dims = {"B": Dim("B", min=1), "N": Dim("N", min=graph.k), "X": Dim("X", min=0)}
    if length > 1:  # an axis of one size is a constant
        dims |= {"L": Dim("L", min=1, max=length), "M": Dim("M", min=1, max=length)}
    axes = [_axes(name, argument) for name, argument in zip(graph.inputs, arguments, strict=True)]
    dynamic = tuple({place: dims[axis] for place, axis in enumerate(shape) if axis in dims} for shape in axes)
    with _quiet():
        try:
            torch.onnx.export(
                graph,
                tuple(arguments),
                path,
                dynamo=True,
                dynamic_shapes=(dynamic,),  # one entry a parameter of forward(), which is *inputs
                input_names=graph.inputs,
                output_names=graph.outputs,
                opset_version=OPSET,
                custom_translation_table=TRANSLATIONS,
                external_data=False,  # else the weights lie in a second file
                verbose=False,
            )
        except Exception as error:  # torch's own exceptions share no base but Exception
            cause = error.__cause__ or error
            problem = (str(cause).strip() or type(cause).__name__).splitlines()[0]
            raise BundleError(f"export of {graph.model.name!r}: torch cannot export it: {problem}") from error
    model = onnx.load(path)
    _strip(model)
    topk.define(model, len(graph.model.item_tensors()["item_bias"]))
    onnx.checker.check_model(model)
    onnx.save(model, path)
    # B may be taken from the shape of any input, which is no use of it.
    used = {name for node in model.graph.node if node.op_type != "Shape" for name in node.input}
    inputs = [tensor_entry(value) for value in model.graph.input]
    for entry, shape in zip(inputs, axes, strict=True):
        if entry.name not in used:
            raise BundleError(f"export of {graph.model.name!r}: {entry.name} is not used. Take it out of `reads`.")
        frozen = [axis for axis, found in zip(shape, entry.shape, strict=True) if axis in dims and axis != found]
        if frozen:
            raise BundleError(f"export of {graph.model.name!r}: axis {frozen[0]} of {entry.name} is frozen.")
    return inputs, [tensor_entry(value) for value in model.graph.output]


def export_item_encoder(encoder: nn.Module, path: Path, features: int) -> None:
    """Write the second graph: `content` float32 [n, F] to `item_vectors` [n, D] and `item_bias` [n]."""
    with _quiet():
        torch.onnx.export(
            encoder.eval(),
            (torch.zeros(3, features),),
            path,
            dynamo=True,
            dynamic_shapes=({0: Dim("n", min=1)},),
            input_names=["content"],
            output_names=["item_vectors", "item_bias"],
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    model = onnx.load(path)
    _strip(model)
    onnx.save(model, path)


def _axes(name: str, argument: torch.Tensor) -> tuple[str | int, ...]:
    """The axes of an input: the contract's names, the sizes of what is kept, and of an item tensor N and its sizes."""
    if name == "vector" or name.startswith(RING):
        return "B", *argument.shape[1:]
    return FEEDS[name][1] if name in FEEDS else ("N", *argument.shape[1:])


def tensor_entry(value: onnx.ValueInfoProto) -> TensorEntry:
    """An input or output of a graph, for the manifest."""
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return TensorEntry(value.name, str(dtype), [axis.dim_param or axis.dim_value for axis in tensor.shape.dim])


def _strip(model: onnx.ModelProto) -> None:
    """Leave out what the exporter notes of its work: names of modules, and paths of files on this machine."""
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
    model.graph.ClearField("metadata_props")
    model.ClearField("metadata_props")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what is said of every export: merged axis names, what is not folded, that torchvision is absent."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _detached(model: Recommender) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in model.item_tensors().items()}


def _write_item_rows(path: Path, items: pl.DataFrame, vectors: str) -> None:
    """A line an item, without the attribute `vectors`, which every worker would have to read and keep."""
    with path.open("wb") as file:
        for row in items.iter_rows(named=True):
            given = row.get("attributes") or {}
            attributes = {name: value for name, value in given.items() if value is not None and name != vectors}
            line = {"item": row["item"], "title": row["title"], "attributes": attributes}
            file.write(msgspec.json.encode(line, enc_hook=str) + b"\n")


def _example(graph: Graph, model_path: Path, length: int, codes: list[int]) -> Feeds:
    """A few users, one of them without history, and what ONNX Runtime gives for them here."""
    items = _detached(graph.model)
    n = len(items["item_bias"])
    rows = padded_rows(n, graph.k, topk.row_multiple(n))
    tensors = {name: tensor.numpy() for name, tensor in padded(items, rows).items()}
    rng = np.random.default_rng(0)
    feeds = random_feeds(rng, n, EXAMPLE_USERS, length, EXAMPLE_EXCLUDED, codes, graph.model.kept)
    feeds = {name: feeds[name] for name in graph.feeds}
    outputs = create_session(model_path).run(graph.outputs, feeds | tensors)
    example = {f"input.{name}": array for name, array in feeds.items()}
    return example | {f"output.{name}": array for name, array in zip(graph.outputs, outputs, strict=True)}


def _manifest(graph: Graph, inputs: list[TensorEntry], outputs: list[TensorEntry], serving: Serving) -> Manifest:
    """All but what `publish` sets."""
    tensors = _detached(graph.model)
    return Manifest(
        schema=SCHEMA,
        model="",
        name=graph.model.name,
        created="",
        opset=OPSET,
        files={},
        inputs=inputs,
        outputs=outputs,
        resident={
            key: ResidentEntry(str(tensor.numpy().dtype), _json_fill(FILLS.get(key, 0.0)))
            for key, tensor in tensors.items()
        },
        items=len(tensors["item_bias"]),
        L=serving.length,
        K=serving.k,
        D=tensors["item_vectors"].shape[1] if "item_vectors" in tensors else 0,
        S=graph.model.vector_size,
        actions=serving.actions,
        excluding_actions=serving.excluding_actions,
        exclude_seen=serving.exclude_seen,
        buckets=Buckets(list(BATCH_BUCKETS), _upto(serving.length, LENGTH_BUCKETS), _upto(serving.length, NEW_BUCKETS)),
        row_multiple=topk.row_multiple(len(tensors["item_bias"])),
        report=serving.report,
    )


def _upto(length: int, buckets: tuple[int, ...]) -> list[int]:
    """Those below the length, and the length."""
    return [*(size for size in buckets if size < length), length]


def _json_fill(fill: float) -> float | Literal["-inf"]:
    """JSON has no infinity."""
    return "-inf" if fill == float("-inf") else fill
