"""Does the exported graph do what the model does? Torch and ONNX Runtime side by side, on what breaks graphs.

Axes: B users, L history length, M new events, S size of a user's vector, N items, X excluded items, K list length.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from exporter.histories import Feeds
from exporter.models.base import FILLS, UPDATED, Graph
from exporter.models.top import exclude
from exporter.topk import row_multiple
from stream_worker.bundle import TOLERANCE
from stream_worker.errors import BundleError
from stream_worker.inference import create_session
from stream_worker.manifest import padded_rows
from stream_worker.vectors import nothing, updated

BATCHES = (1, 2, 7)
TAIL = 5  # rows without an item at the end of the item tensors, as in the worker's slabs
RANDOM_X = (1, 8, 64)
START_MS = 1_700_000_000_000


def check_parity(graph: Graph, model_path: Path, length: int, largest_batch: int, actions: Sequence[int]) -> float:
    """Compare the graph in torch with its ONNX file.

    Args:
        graph: in evaluation mode.
        length: L, the longest history.
        actions: the codes of the manifest.

    Returns:
        The largest difference of two scores, relative to the score where that is above 1.

    Raises:
        BundleError: a list differs by more than the order of equal scores, a score by more than 1e-4, or one is NaN.
    """
    session = create_session(model_path)
    items = {name: tensor.detach() for name, tensor in graph.model.item_tensors().items()}
    n = len(items["item_bias"])
    items = padded(items, padded_rows(n, graph.k, row_multiple(n)))
    worst = 0.0
    for case, feeds in cases(n, length, largest_batch, actions, graph.model.kept):
        for tail in (0, TAIL):
            tensors = padded(items, len(items["item_bias"]) + tail)
            inputs = {name: feeds[name] for name in graph.feeds} | {n: t.numpy() for n, t in tensors.items()}
            found = dict(zip(graph.outputs, session.run(graph.outputs, inputs), strict=True))
            problem, difference = compare(graph, inputs, found)
            if UPDATED in found and not problem:  # once more, from what such users can have
                inputs |= updated({name: inputs[name] for name in graph.model.kept}, found)
                found = dict(zip(graph.outputs, session.run(graph.outputs, inputs), strict=True))
                problem, again = compare(graph, inputs, found)
                difference = max(difference, again)
            worst = max(worst, difference)
            if problem:
                raise BundleError(
                    f"export of {graph.model.name!r}: ONNX Runtime and torch disagree, {problem} ({case}, worst "
                    f"difference of a score {difference:.2g}). Nothing is written. "
                    "exporter/models/base.py names what a model must not do."
                )
    apart = _apart(graph, session, items, length, actions)
    if not apart <= TOLERANCE:
        raise BundleError(
            f"export of {graph.model.name!r}: a user's scores change by {apart:.2g} with the others of the batch, or "
            "with empty columns before the history. Nothing is written. docs/your-model.md says what a model must not."
        )
    return max(worst, apart)


def _apart(graph: Graph, session: Any, items: Mapping[str, torch.Tensor], length: int, actions: Sequence[int]) -> float:
    """By how much the scores of some users differ when each is alone, with no more columns than the history needs."""
    tensors = {name: tensor.numpy() for name, tensor in items.items()}
    rng = np.random.default_rng(0)
    feeds = random_feeds(rng, len(tensors["item_bias"]), BATCHES[-1], length, RANDOM_X[1], actions, graph.model.kept)
    worst = 0.0
    (together,) = session.run(["scores"], {name: feeds[name] for name in graph.feeds} | tensors)
    for user, history_L in enumerate(feeds["history_items"]):
        columns = max(1, int((history_L >= 0).sum()))
        alone = {name: feeds[name][user : user + 1] for name in graph.feeds}
        for name in alone:
            if name.startswith(("history_", "new_")):
                alone[name] = alone[name][:, -columns:]
        (own,) = session.run(["scores"], alone | tensors)
        worst = max(worst, float(_difference(own, together[user : user + 1]).max(initial=0)))
    return worst


def compare(graph: Graph, inputs: Feeds, found: Feeds) -> tuple[str, float]:
    """What is wrong with one batch of outputs ("" if nothing), and its largest difference of two scores.

    Lists are equal up to ties: at every rank the score is torch's, and the item is one that torch gives that score.
    """
    named = {name: torch.from_numpy(array) for name, array in inputs.items()}
    with torch.inference_mode():
        expected = dict(zip(graph.outputs, graph(*(named[name] for name in graph.inputs)), strict=True))
        feeds = {name: named[name] for name in graph.feeds}
        scores_BN = exclude(
            graph.model.scores(graph.model.updated(feeds, named), named), feeds["excluded_items"]
        ).numpy()
    wanted_BK, found_BK, items_BK = expected["scores"].numpy(), found["scores"], found["items"]
    difference_BK = np.maximum(
        _difference(found_BK, wanted_BK), _difference(np.take_along_axis(scores_BN, items_BK, 1), wanted_BK)
    )
    worst = float(difference_BK.max(initial=0))
    if np.isnan(found_BK).any() or np.isnan(wanted_BK).any():
        return "a score is NaN", float("nan")
    if not worst <= TOLERANCE:
        return "a list differs", worst
    if any(len(set(row)) < len(row) for row in items_BK.tolist()):
        return "a list names an item twice", worst
    if "because" in found and _other_reasons(inputs["history_items"], expected, found):
        return "`because` differs", worst
    for name in found.keys() - {"items", "scores", "because"}:
        worst = max(worst, float(_difference(found[name], expected[name].numpy()).max(initial=0)))
        if not worst <= TOLERANCE:
            return f"`{name}` differs", worst
    return "", worst


def padded(tensors: dict[str, torch.Tensor], rows: int) -> dict[str, torch.Tensor]:
    """The item tensors with at least so many rows, those added without an item."""
    return {
        name: torch.cat([t, t.new_full((max(0, rows - len(t)), *t.shape[1:]), FILLS.get(name, 0.0))])
        for name, t in tensors.items()
    }


def cases(
    n: int, length: int, largest_batch: int, actions: Sequence[int], kept: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, Feeds]]:
    """Batches of 1, 2, 7 and the largest bucket; L of 1, about half, and all; empty, short and full histories."""
    rng = np.random.default_rng(0)
    for batch in sorted({*BATCHES, largest_batch}):
        for longest in sorted({1, (length + 1) // 2, length}):
            for excluded in RANDOM_X:
                feeds = random_feeds(rng, n, batch, longest, excluded, actions, kept)
                yield f"batch {batch}, history length {longest}, {excluded} excluded", feeds


def random_feeds(
    rng: np.random.Generator,
    n: int,
    batch: int,
    length: int,
    excluded: int,
    actions: Sequence[int],
    kept: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
) -> Feeds:
    """All feeds of the contract for random users; the last one's history is full, the one before it has none.

    All of a history is new, and what is `kept` of a user, arrays of these shapes, zero.
    """
    size_B = rng.integers(0, length + 1, batch)
    size_B[-2:-1], size_B[-1] = 0, length
    filled_BL = np.arange(length) >= length - size_B[:, None]
    times_BL = START_MS + np.cumsum(rng.integers(0, 100_000, (batch, length)), axis=1) * 1000
    rows_BX = np.where(rng.random((batch, excluded)) < 0.7, rng.integers(0, n, (batch, excluded)), -1)
    events: Feeds = {
        "items": np.where(filled_BL, rng.integers(0, n, (batch, length)), -1).astype(np.int32),
        "actions": np.where(filled_BL, rng.choice(actions, (batch, length)), 0).astype(np.uint8),
        "times": np.where(filled_BL, times_BL, 0),
    }
    return {f"{prefix}_{name}": array for prefix in ("history", "new") for name, array in events.items()} | {
        **nothing(kept, batch),
        "now": np.where(size_B > 0, times_BL[:, -1], 0),
        "excluded_items": rows_BX.astype(np.int32),
    }


def _difference(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """|one - other| / max(1, |other|); two equal infinities do not differ, a NaN differs from everything."""
    with np.errstate(invalid="ignore"):
        apart = np.abs(one.astype(np.float64) - other) / np.maximum(1, np.abs(other))
    return np.where(one == other, 0, np.nan_to_num(apart, nan=np.inf))


def _other_reasons(history_BL: NDArray[Any], expected: dict[str, torch.Tensor], found: Feeds) -> bool:
    """Whether the same item at the same rank has another reason (two columns with the same item are the same one)."""
    wanted_BK, found_BK = expected["because"].numpy(), found["because"]
    item_BK = [np.take_along_axis(history_BL, np.maximum(reason, 0), 1) for reason in (wanted_BK, found_BK)]
    differ_BK = ((wanted_BK < 0) != (found_BK < 0)) | (item_BK[0] != item_BK[1])
    return bool((differ_BK & (found["items"] == expected["items"].numpy())).any())
