"""Users a second on a GPU: our graph through ONNX Runtime beside torch on the same GPU, and what the hardware allows.

SASRec with random weights, full histories, catalogues from 20 thousand to 10 million items; `float16` finds its
candidates in 16 bits (exporter/topk.py). Everybody pays for the way there and back: histories go up, lists come down.
`bound` is the time that a batch takes at the memory bandwidth and the float32 rate that a large copy and a large
product reach on this very GPU. Where there is none it says so; the smoke test runs the same code, device buffers and
all, on the CPU.

Axes: B users, N items, D item dimension.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import bundles, figures
from benchmarks.graphs import REPEATS, feeds_of
from stream_worker.batch import Feeds
from stream_worker.bundle import Bundle
from stream_worker.errors import BundleError
from stream_worker.inference import Device, Inference
from stream_worker.low_precision import ITEM_HALVES, low_precision_rows
from stream_worker.manifest import MODEL

ITEMS = (20_000, 200_000, 1_000_000, 10_000_000)
BATCHES = (32, 128, 512, 2048)
SECONDS = 0.5  # of each turn
MOST_SCORES = 2**33  # of one batch: 32 GiB of float32
PRODUCT, COPY = 8192, 2**28  # of the measured limits: rows of a square matrix, floats


def run(options: Any, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure; returns the result as it is written to JSON.

    Args:
        options: the flags of benchmarks/run.py.
        say: takes a line on how far it is.
    """
    device: Device = "cpu" if options.smoke else "cuda"
    bundle = Bundle(bundles.synthetic(256, 16, 10) if options.smoke else bundles.synthetic())
    result = {"seed": options.seed, "device": device, "batches": {}, "bars": {}}
    try:
        Inference(bundle.path / MODEL, bundle.items.tensors, device)
    except BundleError as error:
        return result | {"device": f"none: {error}"}
    with tempfile.TemporaryDirectory() as directory:
        return result | _measure(options, say, device, bundle, _in_float16(bundle, Path(directory)))


def _in_float16(bundle: Bundle, directory: Path) -> Path:
    """Its graph with candidates in 16 bits."""
    import onnx

    from exporter.low_precision import items_to_float16

    model = onnx.load(bundle.path / MODEL)
    items_to_float16(model)
    onnx.save(model, directory / MODEL)
    return directory / MODEL


def _measure(options: Any, say: Callable[[str], None], device: Device, bundle: Bundle, float16: Path) -> dict[str, Any]:
    from benchmarks import gpu_torch  # torch takes seconds to import

    smoke = options.smoke
    limits = gpu_torch.limits(device, *((64, 2**16) if smoke else (PRODUCT, COPY)))
    measured, bars = {}, {}
    sizes, batches = ((304,), (4,)) if smoke else (ITEMS, BATCHES)
    repeats, seconds = (1, 0.02) if smoke else (options.repeats or REPEATS, SECONDS)
    for count in sizes:
        tensors = _items(count, bundle.manifest.D, options.seed)
        halves = low_precision_rows(tensors["item_vectors"], (ITEM_HALVES,))
        for batch in (one for one in batches if one * count <= MOST_SCORES):
            say(f"{count:,} items, batches of {batch}")
            feeds = feeds_of(bundle, batch, np.random.default_rng(options.seed))
            contenders: dict[str, Callable[[Feeds], Feeds]] = {
                "onnxruntime": Inference(bundle.path / MODEL, tensors, device, bound=True).run,
                "cuda graphs": Inference(bundle.path / MODEL, tensors, device, cuda_graphs=True, bound=True).run,
                "float16": Inference(float16, tensors | halves, device, bound=True).run,
                **gpu_torch.contenders(bundle, tensors, device, compiled=not smoke),
            }
            _agree(contenders, feeds)
            turns: dict[str, list[float]] = {name: [] for name in contenders}
            for _ in range(repeats):
                for name, infer in contenders.items():
                    turns[name].append(_seconds_per_batch(infer, feeds, seconds))
            bound_s = limits.seconds(batch, count, bundle.manifest.D, bundle.manifest.L)
            found = {name: batch / statistics.median(each) for name, each in turns.items()} | {"bound": batch / bound_s}
            measured[f"{count:,} x {batch}"] = {f"{name} users/s": value for name, value in found.items()}
            pairs = zip(turns["torch"], turns["onnxruntime"], strict=True)
            bars[f"vs_torch {count:,} x {batch}"] = figures.bar([torch / ours for torch, ours in pairs])
    rates = {"bytes_per_s": limits.bytes_per_s, "flops": limits.flops}
    return {"limits": rates, "batches": measured, "bars": bars}


def _items(count: int, dim: int, seed: int) -> Feeds:
    vectors_ND = np.random.default_rng(seed).standard_normal((count, dim), np.float32)
    return {"item_vectors": vectors_ND, "item_bias": np.zeros(count, np.float32)}


def _agree(contenders: Mapping[str, Callable[[Feeds], Feeds]], feeds: Feeds) -> None:
    """All give the same scores: no figure of one that does something else."""
    (_, first), *others = ((name, infer(feeds)["scores"]) for name, infer in contenders.items())
    for name, scores in others:
        np.testing.assert_allclose(scores, first, rtol=1e-2, atol=1e-2, err_msg=name)  # a GPU may use TF32


def _seconds_per_batch(infer: Callable[[Feeds], Feeds], feeds: Feeds, seconds: float) -> float:
    infer(feeds)
    start, runs = time.perf_counter(), 0
    while (used := time.perf_counter() - start) < seconds:
        infer(feeds)
        runs += 1
    return used / runs


def table(result: Mapping[str, Any]) -> list[str]:
    """The result for people."""
    if not result["batches"]:
        return [f"no GPU here, so nothing was measured ({result['device']})"]
    limits = result["limits"]
    return [
        f"device {result['device']}: {limits['bytes_per_s'] / 1e9:,.0f} GB/s, {limits['flops'] / 1e12:,.2f} TFLOP/s",
        *figures.rows(result["batches"]),
        "",
        "ours over torch, ratios of users/s: median (least to most) of the pairs of one repeat",
        *figures.verdicts(result["bars"]),
    ]
