"""From model to bundle: parity, what fails an export, and what a reader finds."""

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from exporter.export import Serving, export_onnx, write_bundle
from exporter.models import Graph, Plan, Popularity, Recommender
from exporter.models.base import Tensors
from exporter.parity import check_parity, compare, random_feeds
from exporter.publish import ABANDONED, UNFINISHED, prune
from exporter.verification import checks
from stream_worker.bundle import Bundle
from stream_worker.content import Featuriser
from stream_worker.errors import BundleError
from stream_worker.manifest import CURRENT, FEEDS, MODEL, find_bundle, load_arrays, read_manifest, set_current
from tests.exporter.conftest import CODES, LENGTH, NOW, K, N, catalogue, new_model, serving
from tests.logs import counted

ACTIONS = list(CODES.values())


class Drifting(Popularity):
    """A model whose graph does what the model does not."""

    name: ClassVar[str] = "drifting"

    def scores(self, feeds: Tensors, items: Tensors) -> Tensor:
        scores_BN = super().scores(feeds, items)
        return scores_BN * 1.01 if torch.compiler.is_exporting() else scores_BN


class Inattentive(Recommender):
    """Falls into the trap of facts.md: a mask of -inf, which for an empty history leaves nothing to attend to."""

    name: ClassVar[str] = "inattentive"

    def item_tensors(self) -> dict[str, Tensor]:
        return {"item_bias": torch.zeros(N)}

    def scores(self, feeds: Tensors, items: Tensors) -> Tensor:
        is_item_BL = feeds["history_items"] >= 0
        weights_BL = torch.where(is_item_BL, 0.0, float("-inf")).softmax(dim=-1)
        return weights_BL.sum(dim=-1, keepdim=True) + items["item_bias"]


class Frozen(Popularity):
    """Its L is the example's."""

    name: ClassVar[str] = "frozen"
    reads: ClassVar[tuple[str, ...]] = ("history_items",)

    def scores(self, feeds: Tensors, items: Tensors) -> Tensor:
        history_BL = feeds["history_items"]
        return history_BL.sum(dim=1, keepdim=True) / int(history_BL.shape[1]) + items["item_bias"]


class Unread(Popularity):
    """Asks for what it does not use."""

    name: ClassVar[str] = "unread"
    reads: ClassVar[tuple[str, ...]] = ("history_times",)


class Sociable(Popularity):
    """Its scores hang on the batch."""

    name: ClassVar[str] = "sociable"
    reads: ClassVar[tuple[str, ...]] = ("history_items",)

    def scores(self, feeds: Tensors, items: Tensors) -> Tensor:
        taken_B1 = (feeds["history_items"] >= 0).float().sum(1, keepdim=True)
        return items["item_bias"] + taken_B1 / (1 + taken_B1.mean())


class Counting(Popularity):
    """It counts columns from the left, where there may be padding."""

    name: ClassVar[str] = "counting"
    reads: ClassVar[tuple[str, ...]] = ("history_items",)

    def scores(self, feeds: Tensors, items: Tensors) -> Tensor:
        is_item_BL = (feeds["history_items"] >= 0).float()
        return items["item_bias"] + (is_item_BL.cumsum(1) * 0 + is_item_BL).mean(1, keepdim=True)


PLAN = Plan(N, counted(range(N)), length=LENGTH)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Drifting, "a list differs"),
        (Inattentive, "a score is NaN"),
        (Unread, "history_times is not used"),
        (Sociable, "change by .* with the others of the batch"),
        (Counting, "or with empty columns before the history"),
    ],
)
def test_a_broken_graph_fails_the_export_and_leaves_nothing(
    tmp_path: Path, broken: type[Recommender], message: str
) -> None:
    model = broken(PLAN) if issubclass(broken, Popularity) else broken()
    with pytest.raises(BundleError, match=message) as caught:
        write_bundle(tmp_path, model.eval(), catalogue(), serving(), NOW)
    assert model.name in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_freezes_an_axis_fails_the_export(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="frozen"):
        export_onnx(Graph(Frozen(PLAN), K).eval(), tmp_path / MODEL, LENGTH)


def test_parity_names_the_worst_difference_of_another_models_graph(tmp_path: Path) -> None:
    path = tmp_path / MODEL
    export_onnx(Graph(new_model("popularity"), K).eval(), path, LENGTH)
    other = new_model("popularity", seed=1)
    check_parity(Graph(new_model("popularity"), K).eval(), path, LENGTH, 4, ACTIONS)
    check_parity(Graph(other, K).eval(), path, LENGTH, 4, ACTIONS)  # the items are inputs: the same graph serves both


def test_equal_scores_may_change_places_and_others_may_not() -> None:
    graph = Graph(Popularity(Plan(4, counted([5, 5, 3, 1]), length=LENGTH)), 3).eval()
    feeds = random_feeds(np.random.default_rng(0), 4, 2, LENGTH, 1, ACTIONS)
    feeds["excluded_items"][:] = -1
    inputs = {"excluded_items": feeds["excluded_items"], "item_bias": graph.model.item_tensors()["item_bias"].numpy()}
    scores = np.tile(np.log1p(np.array([5, 5, 3], np.float32)), (2, 1))
    for items, problem in (
        ([0, 1, 2], ""),
        ([1, 0, 2], ""),
        ([0, 2, 1], "a list differs"),
        ([0, 0, 2], "a list names an item twice"),
    ):
        found = {"items": np.tile(np.array(items), (2, 1)), "scores": scores}
        assert compare(graph, inputs, found)[0] == problem


def test_a_bundle_says_what_its_graph_takes_and_gives(bundle: Bundle, model: Recommender) -> None:
    manifest = read_manifest(bundle.path)
    assert manifest.model == bundle.path.name
    assert manifest.model.startswith(f"{model.name}-20260101T000000-")
    assert (manifest.K, manifest.L, manifest.items, manifest.opset) == (K, LENGTH, N, 20)
    assert manifest.buckets.length == [8, LENGTH]
    assert manifest.report == {"hr@10": 0.5}
    assert {entry.name for entry in manifest.inputs} == {"excluded_items", *model.reads, *manifest.resident}
    for entry in manifest.inputs:
        if entry.name in FEEDS:
            dtype, axes = FEEDS[entry.name]
            assert (entry.dtype, entry.shape) == (dtype, [manifest.S if axis == "S" else axis for axis in axes])
        elif entry.name in model.rings:
            assert (entry.dtype, entry.shape) == ("float32", ["B", *model.rings[entry.name]])
        else:
            assert entry.shape[0] == "N"
    assert [(entry.name, entry.shape) for entry in manifest.outputs] == [
        *((name, ["B", K]) for name in ("items", "scores", *(["because"] if model.explains else []))),
        *([("updated_vector", ["B", manifest.S])] if model.vector_size else []),
        *([("ring_places", ["B", "M"])] if model.rings else []),
        *((f"{name}_new", ["B", "M", size]) for name, (_, size) in model.rings.items()),
    ]
    assert manifest.kept == model.kept
    rows = [json.loads(line) for line in (bundle.path / "items.jsonl").read_text().splitlines()]
    assert rows[3] == {"item": "i3", "title": "", "attributes": {"year": 2003}}
    assert find_bundle(bundle.path.parent) == bundle.path


def test_the_example_has_an_empty_history_and_excluded_items(bundle: Bundle, model: Recommender) -> None:
    example = load_arrays(bundle.path / "example.npz")
    assert (example["input.excluded_items"] >= 0).any()
    if "history_items" in model.reads:
        lengths = (example["input.history_items"] >= 0).sum(axis=1)
        assert {0, LENGTH} < set(lengths.tolist())


def test_the_graph_carries_no_path_of_this_machine(bundle: Bundle) -> None:
    content = (bundle.path / MODEL).read_bytes()
    assert b".py" not in content
    assert str(Path(__file__).parents[2]).encode() not in content


def test_fewer_items_than_k_still_make_a_bundle(tmp_path: Path) -> None:
    model = new_model("popularity", n=2)
    path = write_bundle(tmp_path, model, catalogue(2), serving(), NOW)
    small = Bundle(path)
    small.check_example()
    assert small.warm_up() > 0
    assert len(small.default_list) == 2


def test_precomputed_vectors_are_not_written_beside_the_items(tmp_path: Path) -> None:
    vectors = catalogue().with_columns(attributes=pl.struct(year=1999, vector=pl.lit([0.5, 0.25])))
    featuriser = Featuriser.fit([("", row["attributes"]) for row in vectors.iter_rows(named=True)], "vector")
    path = write_bundle(tmp_path, new_model("popularity"), vectors, serving(), NOW, featuriser)
    assert Bundle(path).rows[0].attributes == {"year": 1999}


def test_a_second_export_in_the_same_second_is_another_bundle(tmp_path: Path) -> None:
    one, two = (write_bundle(tmp_path, new_model("popularity"), catalogue(), serving(), NOW) for _ in range(2))
    assert one.name[-8:] == two.name[-8:], "the same content"
    assert one != two
    assert json.loads((tmp_path / CURRENT).read_text()) == {"bundle": two.name}
    assert {path.name for path in tmp_path.iterdir()} == {CURRENT, one.name, two.name}


def test_two_items_of_one_hash_are_refused(tmp_path: Path) -> None:
    twice = catalogue()[[*range(N - 1), 0]]
    with pytest.raises(BundleError, match="'i0' and 'i0' have the same 64-bit hash"):
        write_bundle(tmp_path, new_model("popularity"), twice, serving(), NOW)
    assert list(tmp_path.iterdir()) == []


def test_a_length_of_one_exports(tmp_path: Path) -> None:
    model = Popularity(Plan(N, counted(range(N)), length=1))
    write_bundle(tmp_path, model, catalogue(), Serving(1, K, CODES, []), NOW)


def test_verify_says_one_line_a_check(bundle: Bundle) -> None:
    lines = list(checks(bundle.path.parent))
    assert len(lines) == 4
    assert bundle.manifest.model in lines[0]


def test_old_bundles_go_but_for_the_current_one(tmp_path: Path) -> None:
    days = [NOW + timedelta(days=day) for day in range(4)]
    bundles = [write_bundle(tmp_path, new_model("popularity"), catalogue(), serving(), day) for day in days]
    set_current(tmp_path, bundles[0])  # somebody went back
    not_ours = tmp_path / "notes-20200101T000000-0123abcd"
    not_ours.mkdir()
    killed, running = (tmp_path / f"{UNFINISHED}{name}" for name in ("killed", "running"))
    for path, age in ((killed, ABANDONED * 2), (running, ABANDONED / 2)):
        path.mkdir()
        stamp = (NOW - age).timestamp()
        os.utime(path, (stamp, stamp))

    assert prune(tmp_path, 2, NOW) == [bundles[1]]

    left = {path for path in tmp_path.iterdir() if path.is_dir()}
    assert left == {bundles[0], bundles[2], bundles[3], not_ours, running}
    assert prune(tmp_path, 2, NOW) == []
