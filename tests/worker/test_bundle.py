"""A bundle loads whole, or is refused with a reason."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream_worker.bundle import Bundle
from stream_worker.errors import BundleError
from stream_worker.manifest import find_bundle, read_manifest, set_current, sha256_of, write_manifest
from stream_worker.messages import item_hash

BYTES = {"dtype": "uint8", "fill": "-inf"}


@pytest.fixture
def copy(models: dict[str, Path], tmp_path: Path) -> Path:
    """A bundle of one's own."""
    return Path(shutil.copytree(find_bundle(models["sasrec"]), tmp_path / "bundle"))


def rewrite(bundle: Path, **changes: Any) -> None:
    """Change the manifest."""
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_directory_of_bundles_means_its_current_one(models: dict[str, Path]) -> None:
    assert Bundle(models["sasrec"]).manifest.name == "sasrec"
    assert find_bundle(find_bundle(models["sasrec"])) == find_bundle(models["sasrec"])


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no manifest\.json and no current\.json"):
        Bundle(tmp_path)
    (tmp_path / "current.json").write_text('{"bundle": "gone"}')
    with pytest.raises(BundleError, match="names 'gone'"):
        Bundle(tmp_path)
    (tmp_path / "current.json").write_text('{"bundle": "../up"}')
    with pytest.raises(BundleError, match=r"names '\.\./up'"):
        Bundle(tmp_path)
    (tmp_path / "current.json").write_text("[]")
    with pytest.raises(BundleError, match="not of the form"):
        Bundle(tmp_path)


def test_a_changed_file_is_refused(copy: Path) -> None:
    with (copy / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match=r"model\.onnx: changed since it was exported"):
        Bundle(copy)


def test_a_missing_or_linked_file_is_refused(copy: Path) -> None:
    (copy / "items.npz").rename(copy / "elsewhere.npz")
    with pytest.raises(BundleError, match=r"items\.npz: the manifest names it"):
        Bundle(copy)
    (copy / "items.npz").symlink_to(copy / "elsewhere.npz")
    with pytest.raises(BundleError, match="not a plain file"):
        Bundle(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "schema 2, but this worker reads 1"),
        ({"files": {}}, "files lacks"),
        ({"K": 0}, "at least 1"),
        ({"actions": {"view": 256}}, "1..255"),
        ({"inputs": [{"name": "weather", "dtype": "int32", "shape": ["B"]}]}, "'weather', which this worker cannot"),
        ({"inputs": [{"name": "now", "dtype": "int32", "shape": ["B"]}]}, "'now' is int32"),
        ({"outputs": []}, "must give"),
        ({"inputs": [{"name": "ring_a", "dtype": "float32", "shape": ["B", "R", 2]}]}, "ring_a must be float32"),
        (
            {"inputs": [{"name": "ring_a", "dtype": "float32", "shape": ["B", 3, 2]}]},
            "ring_a needs an output ring_a_new",
        ),
        ({"resident": {}}, "cannot feed|item_bias"),
        ({"resident": {"item_vectors": BYTES, "item_bias": BYTES}}, "'item_vectors' is -inf, which no uint8"),
        ({"buckets": {"batch": [], "length": [10], "new": [10]}}, "buckets.batch"),
        ({"buckets": {"batch": [1], "length": [5], "new": [10]}}, "L = 10"),
        ({"items": "many"}, "Expected `int`"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(copy: Path, changes: dict[str, Any], message: str) -> None:
    rewrite(copy, **changes)
    with pytest.raises(BundleError, match=message):
        Bundle(copy)


def test_a_graph_that_answers_otherwise_than_at_export_is_refused(copy: Path) -> None:
    with np.load(copy / "example.npz") as arrays:
        changed = {name: array + 1 if name == "output.scores" else array for name, array in arrays.items()}
    np.savez(copy / "example.npz", **changed)
    files = json.loads((copy / "manifest.json").read_text())["files"]
    entry = sha256_of(copy / "example.npz")
    rewrite(copy, files=files | {"example.npz": {"sha256": entry.sha256, "size": entry.size}})
    with pytest.raises(BundleError, match="differ"):
        Bundle(copy).warm_up()


def test_pickled_items_are_refused(copy: Path) -> None:
    np.savez(copy / "items.npz", item_bias=np.array([{"a": 1}], object))
    files = json.loads((copy / "manifest.json").read_text())["files"]
    entry = sha256_of(copy / "items.npz")
    rewrite(copy, files=files | {"items.npz": {"sha256": entry.sha256, "size": entry.size}})
    with pytest.raises(BundleError, match="not an archive of plain arrays"):
        Bundle(copy)


def test_rows_of_hashes_of_any_shape(sasrec: Bundle) -> None:
    hashes = np.array([[item_hash("i7"), item_hash("nowhere")], [item_hash("i0"), 2**64 - 1]], np.uint64)
    assert sasrec.items.rows_of(hashes).tolist() == [[7, -1], [0, -1]]


def test_warm_up_knows_the_list_for_everybody(sasrec: Bundle, popularity: Bundle) -> None:
    bias = popularity.items.tensors["item_bias"]
    assert popularity.default_list.tolist() == np.argsort(-bias, kind="stable")[:5].tolist()
    assert len(set(sasrec.default_list.tolist())) == 5


def test_cuda_without_a_gpu_is_refused_at_once_and_auto_takes_the_cpu(models: dict[str, Path]) -> None:
    if Path("/dev/nvidia0").exists():
        pytest.skip("this machine has a GPU")
    start = time.monotonic()
    with pytest.raises(BundleError, match=r"device cuda: .*--device cpu"):
        Bundle(models["popularity"], "cuda")
    assert time.monotonic() - start < 10
    assert Bundle(models["popularity"], "auto").device == "cpu"


def test_writing_is_whole_or_not_at_all(copy: Path, tmp_path: Path) -> None:
    manifest = read_manifest(copy)
    write_manifest(copy, manifest)
    set_current(tmp_path, copy)
    assert read_manifest(find_bundle(tmp_path)) == manifest
    assert not list(tmp_path.rglob("*.new"))
