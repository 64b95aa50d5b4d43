"""The best items of all, alone: our graph, in float32 and from 8-bit candidates, a bare product, and FAISS, in turns.

The same vectors, one thread each, CPU time. Ours does what a worker asks of it: it adds a bias (of 0 here, so that the
lists can be compared), and has a row of excluded items for each user (of padding). The bare product is users times all
items in ONNX Runtime and nothing else; FAISS is IndexFlatIP, told to take BLAS from 20 users on. Beside them stands
what the core can do at best: the product's floating-point operations at the speed of a small measured GEMM, or its
bytes at that of a copy, whichever takes longer.

It measures in a process of its own, `python -m benchmarks.topk`, without OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE: where
they are set they choose slower kernels for the OpenBLAS in FAISS.

Axes: B users, N items, D item dimension, K list length.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import figures
from benchmarks.bundles import DIM, LENGTH, K
from benchmarks.contenders import ROOT
from benchmarks.errors import BenchmarkError
from stream_worker.batch import NO_ITEM, Feeds, excluded_bucket
from stream_worker.inference import create_session
from stream_worker.low_precision import ITEM_SCALES, ITEM_STEPS, low_precision_rows
from stream_worker.manifest import padded_rows

CATALOGUES, BATCHES = (2_000, 20_000, 200_000, 1_000_000), (1, 32, 256)
SMOKE_CATALOGUES, SMOKE_BATCHES = (2_000, 53_000), (1, 32)
REPEATS = 7
SECONDS = 0.1  # of a turn, at least
BAR_BATCH = 32
FAISS_BAR, MATMUL_BAR = 0.9, 1.2
FAISS_BLAS_USERS = 20  # its default for years; that of 1.15 keeps to loops, a quarter of the speed at 32 users
TOLERANCE = 1e-4
SLOWING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

Search = Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], NDArray[np.int64]]]


def run(options: Any, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure; returns the result as it is written to JSON.

    Args:
        options: the flags of benchmarks/run.py.
        say: takes a line on how far it is.
    """
    wanted = {
        "catalogues": SMOKE_CATALOGUES if options.smoke else CATALOGUES,
        "batches": SMOKE_BATCHES if options.smoke else BATCHES,
        "repeats": 1 if options.smoke else options.repeats or REPEATS,
        "seconds": 0.01 if options.smoke else SECONDS,
        "seed": options.seed,
    }
    say(f"catalogues of {', '.join(f'{items:,}' for items in wanted['catalogues'])} items")
    kept = {name: value for name, value in os.environ.items() if name not in SLOWING}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.topk", json.dumps(wanted)],
        cwd=ROOT,
        env=kept | ONE_THREAD,
        check=False,
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise BenchmarkError(f"topk: the process that measures ended with {done.returncode}; what it said is above.")
    found: dict[str, Any] = json.loads(done.stdout)
    return found | {"bars": _bars(found["topk"], max(wanted["catalogues"]))}


def table(result: Mapping[str, Any]) -> list[str]:
    """The result for people."""
    load, core = result["load"], result["core"]
    lines = [
        f"load   vectors of {load['dim']}, lists of {load['k']}, one thread, CPU ms a batch, {load['repeats']} repeats "
        "in turns, medians",
        f"core   {core['gflops']:.1f} Gflop/s (GEMM), {core['gbytes_per_s']:.1f} GB/s (copy); bound_ms is by these",
    ]
    for items, batches in result["topk"].items():
        rows = {
            f"batch {batch}": {f"{name}_ms": one["ms"] for name, one in contenders.items()}
            for batch, contenders in batches.items()
        }
        shared = result["int8_overlap"][items]
        lines += ["", f"{int(items):,} items, top-{load['k']} overlap of int8 {shared:.4f}", *figures.rows(rows)]
    lines += ["", "ratios: median (least to most) of the pairs of one repeat", *figures.verdicts(result["bars"])]
    return lines


def measure(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What the process of its own does.

    Raises:
        BenchmarkError: our lists are not those of FAISS.
    """
    rng = np.random.default_rng(wanted["seed"])
    core = {"gflops": _flops_per_s() / 1e9, "gbytes_per_s": _bytes_per_s() / 1e9}
    found: dict[str, dict[str, Any]] = {}
    overlap = {}
    for items in wanted["catalogues"]:
        vectors_ND = rng.standard_normal((items, DIM), dtype=np.float32)
        searches = _searches(vectors_ND)
        found[str(items)] = {}
        for batch in wanted["batches"]:
            user_BD = rng.standard_normal((batch, DIM), dtype=np.float32)
            _compare(searches["exact"](user_BD), searches["faiss"](user_BD), items, batch)
            exact_BK, int8_BK = (searches[name](user_BD)[1] for name in ("exact", "int8"))
            is_shared_BK = (exact_BK[:, :, None] == int8_BK[:, None]).any(axis=2)
            overlap[str(items)] = float(is_shared_BK.mean())  # of the last, the largest batch
            turns = _in_turns(searches, user_BD, wanted["repeats"], wanted["seconds"])
            bound_s = max(2 * batch * items * DIM / core["gflops"], vectors_ND.nbytes / core["gbytes_per_s"]) / 1e9
            found[str(items)][str(batch)] = {name: figures.medians(each) for name, each in turns.items()} | {
                "bound": {"ms": bound_s * 1000}
            }
    load = {"dim": DIM, "k": K, "excluded": excluded_bucket(LENGTH), "repeats": wanted["repeats"]}
    return {"seed": wanted["seed"], "load": load, "core": core, "topk": found, "int8_overlap": overlap}


def _searches(vectors_ND: NDArray[np.float32]) -> dict[str, Search]:
    """Each contender on these items."""
    # Not at the top: the process that only starts this one needs none of it.
    import faiss
    from onnx import ModelProto, parser

    from exporter import topk
    from exporter.low_precision import items_to_int8

    items = len(vectors_ND)
    exact, int8 = topk.alone(DIM, K), topk.alone(DIM, K)
    topk.define(exact, items)
    topk.define(int8, items)
    block = min(topk.BLOCK, padded_rows(items, K, topk.CHUNK))
    items_to_int8(int8, block)
    product = parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 20]> product (float[B, {DIM}] user, float[N, {DIM}] item_vectors)'
        " => (float[B, N] scores) { turned = Transpose<perm = [1, 0]>(item_vectors) scores = MatMul(user, turned) }"
    )

    def padded(multiple: int) -> Feeds:
        """Items as a worker holds them."""
        rows = padded_rows(items, K, multiple)
        padded_ND = np.zeros((rows, DIM), np.float32)
        padded_ND[:items] = vectors_ND
        return {
            "item_vectors": padded_ND,
            "item_bias": np.where(np.arange(rows) < items, 0, -np.inf).astype(np.float32),
        }

    def through(model: ModelProto, tensors: Feeds) -> Search:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "model.onnx"
            path.write_bytes(model.SerializeToString())
            session = create_session(path)
        names, outputs = {node.name for node in session.get_inputs()}, [node.name for node in session.get_outputs()]

        def search(user_BD: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
            none_BX = np.full((len(user_BD), excluded_bucket(LENGTH)), NO_ITEM, np.int32)
            feeds = {"user": user_BD, "excluded_items": none_BX} | tensors
            given = session.run(outputs, {name: array for name, array in feeds.items() if name in names})
            return given[0], given[-1]

        return search

    tensors = padded(block)
    faiss.omp_set_num_threads(1)
    faiss.cvar.distance_compute_blas_threshold = FAISS_BLAS_USERS
    index = faiss.IndexFlatIP(DIM)
    index.add(vectors_ND)
    return {
        "exact": through(exact, padded(topk.row_multiple(items))),
        "int8": through(int8, tensors | low_precision_rows(tensors["item_vectors"], (ITEM_STEPS, ITEM_SCALES))),
        "matmul": through(product, {"item_vectors": vectors_ND}),
        "faiss": lambda user_BD: index.search(user_BD, K),
    }


def _compare(
    ours: tuple[NDArray[np.float32], NDArray[np.int64]],
    theirs: tuple[NDArray[np.float32], NDArray[np.int64]],
    items: int,
    batch: int,
) -> None:
    """The same items in the same order, but where scores are nearly equal, and the same scores."""
    (scores_BK, rows_BK), (wanted_BK, wanted_rows_BK) = ours, theirs
    apart = np.abs(scores_BK - wanted_BK) > TOLERANCE
    gap_BK = np.abs(np.diff(wanted_BK, axis=1)) > 2 * TOLERANCE
    alone_BK = np.pad(gap_BK, ((0, 0), (1, 0)), constant_values=True)
    alone_BK &= np.pad(gap_BK, ((0, 0), (0, 1)), constant_values=False)  # the last may tie with one off the list
    if apart.any() or ((rows_BK != wanted_rows_BK) & alone_BK).any():
        raise BenchmarkError(f"topk: {items} items, batch {batch}: our lists are not those of FAISS.")


def _in_turns(
    searches: Mapping[str, Search], user_BD: NDArray[np.float32], repeats: int, seconds: float
) -> dict[str, list[dict[str, float]]]:
    """CPU ms of a batch, a repeat each, in alternating order; the first run of each is not counted."""
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in searches}
    for search in searches.values():
        search(user_BD)
    for repeat in range(repeats):
        for name in list(searches)[:: 1 if repeat % 2 else -1]:
            start, runs = time.process_time(), 0
            while (used := time.process_time() - start) < seconds or not runs:
                searches[name](user_BD)
                runs += 1
            turns[name].append({"ms": used / runs * 1000})
    return turns


def _flops_per_s() -> float:
    """Of a GEMM whose matrices fit the cache, the best of some."""
    left, right = (np.random.default_rng(0).standard_normal((384, 384), dtype=np.float32) for _ in range(2))
    return 2 * 384**3 / _least_seconds(lambda: left @ right)


def _bytes_per_s() -> float:
    """Of a copy that fits no cache, read and written, the best of some."""
    source, target = np.ones((2, 1 << 24), np.float32)
    return 2 * source.nbytes / _least_seconds(lambda: np.copyto(target, source))


def _least_seconds(work: Callable[[], Any], times: int = 20) -> float:
    each = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        each.append(time.perf_counter() - start)
    return min(each)


def _bars(found: Mapping[str, Mapping[str, Mapping[str, figures.Figures]]], largest: int) -> dict[str, Any]:
    """Of the largest catalogue; of 8 bits also of the one before it."""
    bars = {}
    at = found[str(largest)]
    # CPU ms of FAISS over ours: how many times its speed.
    bars["topk_vs_faiss"] = figures.ratio(at[str(BAR_BATCH)], "ms", "faiss", "exact", at_least=FAISS_BAR)
    for batch in (1, BAR_BATCH):
        bars[f"topk_vs_matmul_{batch}"] = figures.ratio(at[str(batch)], "ms", "exact", "matmul", at_most=MATMUL_BAR)
    for items in list(found)[-2:]:
        for batch in (1, BAR_BATCH):
            name = f"int8_vs_exact_{items}_{batch}"
            bars[name] = figures.ratio(found[items][str(batch)], "ms", "exact", "int8")
    return bars


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
