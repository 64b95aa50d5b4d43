"""The torch side of the GPU benchmark: the same graph, eager and compiled, and the limits of the device.

Axes: B users, N items, D item dimension, L history length.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from benchmarks.bundles import random_model
from exporter.models.attention import BLOCKS
from exporter.models.base import Graph
from stream_worker.batch import Feeds
from stream_worker.bundle import Bundle

RUNS = 10


class Limits(NamedTuple):
    """What a large copy and a large product reach: bytes read and written, and float32 operations, a second."""

    bytes_per_s: float
    flops: float

    def seconds(self, batch: int, items: int, dim: int, length: int) -> float:
        """The least that a batch can take: by memory or by arithmetic, whichever is longer.

        Items are read once, scores written and read once. Every position passes six products of D x D in each block but
        the last, of which only the newest does.
        """
        moved = 4 * (items * dim + 2 * batch * items)
        encoder = 2 * batch * length * (BLOCKS - 1) * (6 * dim * dim + 2 * length * dim)
        return max(moved / self.bytes_per_s, (2 * batch * items * dim + encoder) / self.flops)


def limits(device: str, rows: int, floats: int) -> Limits:
    """Measure them."""
    square, line = torch.randn(rows, rows, device=device), torch.zeros(floats, device=device)
    product_s = _seconds(device, lambda: square @ square)
    copy_s = _seconds(device, line.clone)
    return Limits(2 * 4 * floats / copy_s, 2 * rows**3 / product_s)


def contenders(bundle: Bundle, tensors: Feeds, device: str, compiled: bool) -> dict[str, Callable[[Feeds], Feeds]]:
    """The model of a synthetic bundle, as a function from feeds to outputs, eager and compiled."""
    manifest = bundle.manifest
    model = random_model(manifest.items, manifest.D, manifest.L, manifest.name)
    graph = Graph(model, manifest.K).eval().to(device)
    items = {name: torch.from_numpy(array).to(device) for name, array in tensors.items()}

    def runner(module: Callable[..., tuple[torch.Tensor, ...]]) -> Callable[[Feeds], Feeds]:
        def infer(feeds: Feeds) -> Feeds:
            with torch.inference_mode():
                there = [torch.from_numpy(feeds[name]).to(device) for name in graph.feeds]
                outputs = module(*there, *(items[name] for name in graph.inputs[len(graph.feeds) :]))
                return {name: tensor.cpu().numpy() for name, tensor in zip(graph.outputs, outputs, strict=True)}

        return infer

    found = {"torch": runner(graph)}
    if compiled:
        found["torch.compile"] = runner(torch.compile(graph))
    return found


def _seconds(device: str, work: Callable[[], object]) -> float:
    """Of one run, after one to warm up."""
    work()
    _wait(device)
    start = time.perf_counter()
    for _ in range(RUNS):
        work()
    _wait(device)
    return (time.perf_counter() - start) / RUNS


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
