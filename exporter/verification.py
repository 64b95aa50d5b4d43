"""Is a bundle whole, and does its graph give here what it gave at export?

Axes: B users, K list length.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stream_worker.bundle import TOLERANCE, Bundle
from stream_worker.errors import BundleError
from stream_worker.inference import create_session
from stream_worker.manifest import EXAMPLE, MODEL, Manifest, find_bundle, load_arrays, read_manifest


def checks(path: Path) -> Iterator[str]:
    """Check a bundle step by step.

    Args:
        path: a bundle, or a directory of bundles with a current.json.

    Yields:
        A line for each check that it passed.

    Raises:
        BundleError: the first check that it failed.
    """
    directory = find_bundle(path)
    manifest = read_manifest(directory)
    size = sum(entry.size for entry in manifest.files.values())
    yield f"{manifest.model}: manifest, and hashes of {len(manifest.files)} files ({size / 2**20:.1f} MiB)"
    bundle = Bundle(directory)
    yield f"items: {len(bundle.items):,} rows, resident {', '.join(manifest.resident)}"
    _check_nodes(directory, manifest)
    inputs = ", ".join(entry.name for entry in manifest.inputs)
    yield f"graph: opset {manifest.opset}, {inputs} -> {', '.join(entry.name for entry in manifest.outputs)}"
    bundle.check_example()
    users = _check_lists(bundle)
    yield f"example: the lists of {users} users, as at export"


def _check_nodes(directory: Path, manifest: Manifest) -> None:
    """The graph's inputs and outputs are those of the manifest, by name."""
    session = create_session(directory / MODEL)
    for kind, found, said in (
        ("inputs", session.get_inputs(), manifest.inputs),
        ("outputs", session.get_outputs(), manifest.outputs),
    ):
        names = [node.name for node in found]
        if names != [entry.name for entry in said]:
            raise BundleError(f"bundle {directory / MODEL}: its {kind} are {names}, the manifest says otherwise.")


def _check_lists(bundle: Bundle) -> int:
    """The example's items, up to the order of equal scores, and that none of them was excluded. Returns B."""
    example = load_arrays(bundle.path / EXAMPLE)
    feeds = {name.removeprefix("input."): array for name, array in example.items() if name.startswith("input.")}
    found = bundle.infer(feeds)
    items_BK, wanted_BK, scores_BK = found["items"], example["output.items"], example["output.scores"]
    finite_BK = np.isfinite(scores_BK)
    # An item may change places with a neighbour, or with one just off the list, that has the same score.
    near = 2 * TOLERANCE * max(1, float(np.abs(scores_BK[finite_BK]).max(initial=0)))
    some_BK = np.where(finite_BK, scores_BK, 0)
    near_BKK = np.abs(some_BK[:, :, None] - some_BK[:, None, :]) <= near
    tied_BK = (near_BKK.sum(axis=2) > 1) | near_BKK[:, :, -1]
    if ((items_BK != wanted_BK) & finite_BK & ~tied_BK).any():
        raise BundleError(f"bundle {bundle.path / EXAMPLE}: the lists differ from those at export.")
    excluded_BX = feeds["excluded_items"]
    listed_BKX = (items_BK[:, :, None] == excluded_BX[:, None, :]) & np.isfinite(found["scores"])[:, :, None]
    if listed_BKX.any():
        raise BundleError(f"bundle {bundle.path / EXAMPLE}: an excluded item is on a list.")
    return len(items_BK)
