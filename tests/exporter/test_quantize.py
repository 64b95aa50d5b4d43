"""`exporter quantize`: the same lists from a smaller bundle, or none.

Axes: B users, N items, D item dimension, K list length.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest

from exporter.cli import main
from exporter.export import write_bundle
from exporter.impact import overlap
from exporter.low_precision import weights_to_int8
from exporter.quantize import FLOAT16, INT8, quantized
from stream_worker.bundle import Bundle
from stream_worker.cli import main as worker
from stream_worker.low_precision import low_precision_rows
from stream_worker.manifest import EXAMPLE, ITEMS, MODEL, ResidentEntry, find_bundle, load_arrays
from tests.exporter import test_contract as contract
from tests.exporter.conftest import NOW, K, N, catalogue, new_model, serving, write_events

WEIGHTS = {"gru4rec": 3, "mf": 0, "sasrec": 10}


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_events(tmp_path_factory.mktemp("events") / "events.csv")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Bundles by the model's name, each exported once."""

    @cache
    def export(name: str) -> Path:
        return write_bundle(tmp_path_factory.mktemp(name), new_model(name), catalogue(), serving(), NOW)

    return export


@pytest.fixture(scope="module", params=sorted(WEIGHTS))
def before(request: pytest.FixtureRequest, exported: Callable[[str], Path]) -> Bundle:
    return Bundle(exported(request.param))


@pytest.fixture(scope="module")
def bundle(before: Bundle, events: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Quantised by the command. The weights are random: one hit less may be a large loss."""
    out = tmp_path_factory.mktemp("after")
    assert quantize(before.path, out, events, "--items-int8", "--max-loss", "0.9") == 0
    return Bundle(out)


@pytest.fixture(scope="module")
def sasrec(exported: Callable[[str], Path]) -> Path:
    return exported("sasrec")


def quantize(bundle: Path, out: Path, events: Path, *flags: str) -> int:
    return main(["quantize", str(bundle), "--out", str(out), "--events", str(events), *flags])


def test_lists_and_scores_are_near_those_before(before: Bundle, bundle: Bundle, seed: int) -> None:
    """What differs are the weights: candidates are scored anew."""
    feeds = contract.feeds_of(seed)
    one, other = contract.run(before, feeds), contract.run(bundle, feeds)
    assert overlap(one["items"], other["items"]) >= (1 if before.manifest.name == "mf" else 0.8)
    np.testing.assert_allclose(other["scores"], one["scores"], atol=0.05 * np.abs(one["scores"]).max())


def test_a_row_that_is_written_at_run_time_is_found(bundle: Bundle, seed: int) -> None:
    tensors = {name: tensor.copy() for name, tensor in bundle.items.tensors.items()}
    new = N  # a row without an item until then
    tensors["item_vectors"][new] = 0
    tensors["item_vectors"][new, 0] = 1
    for name, rows in low_precision_rows(tensors["item_vectors"][new : new + 1], tensors).items():
        tensors[name][new] = rows[0]
    feeds = contract.feeds_of(seed)
    assert not (contract.run(bundle, feeds, tensors)["items"] == new).any()
    tensors["item_bias"][new] = 1000
    assert (contract.run(bundle, feeds, tensors)["items"][:, 0] == new).all()


def test_a_user_alone_gets_what_the_user_gets_in_a_batch(bundle: Bundle) -> None:
    feeds = contract.feeds_of(0)
    together = contract.run(bundle, feeds)
    for user in range(contract.USERS):
        alone = contract.run(bundle, contract.rows_of(feeds, slice(user, user + 1)))
        contract.same_lists(contract.rows_of(together, slice(user, user + 1)), alone)
    contract.test_a_user_gets_the_same_list_alone_in_any_batch_and_with_any_padding(bundle, 0)


def test_the_contract_holds(bundle: Bundle, seed: int) -> None:
    if bundle.manifest.resident.keys().isdisjoint(FLOAT16):  # else it takes whole chunks only
        contract.test_rows_without_an_item_at_the_end_are_never_recommended(bundle, 0)
    contract.test_nothing_is_nan_and_lists_are_full_and_sorted(bundle, seed, 3)
    contract.test_an_empty_history_gets_a_list(bundle)
    contract.test_excluded_items_are_never_recommended(bundle, seed)
    contract.test_row_0_is_excluded_beside_padding_and_padding_excludes_nothing(bundle)
    contract.test_an_item_row_changed_at_run_time_counts(bundle, seed)
    if bundle.manifest.S:
        contract.test_no_new_event_changes_no_vector(bundle, seed)


def test_the_manifest_says_what_there_is(before: Bundle, bundle: Bundle) -> None:
    was, now = before.manifest, bundle.manifest
    assert was.files[ITEMS].size < now.files[ITEMS].size < 1.6 * was.files[ITEMS].size  # the 8 bits come on top
    # These graphs are all head and no body: of the weights alone.
    initializers = [onnx.load(one.path / MODEL).graph.initializer for one in (before, bundle)]
    large = [sum(len(t.raw_data) for t in tensors if len(t.dims) > 1 and t.dims[-1] > 1) for tensors in initializers]
    assert WEIGHTS[before.manifest.name] == 0 or large[1] < large[0] / 2
    assert (now.name, now.report, now.actions) == (was.name, was.report, was.actions)
    assert now.model != was.model
    assert now.resident["item_steps"] == ResidentEntry("uint8", 128)
    assert now.resident["item_vectors"] == was.resident["item_vectors"]
    assert now.row_multiple == 48
    assert bundle.items.tensors["item_scales"].shape == (48,)
    inputs = {entry.name: (entry.dtype, entry.shape) for entry in now.inputs}
    assert inputs["item_steps"] == ("uint8", ["N", was.D])
    assert inputs["item_scales"] == ("float32", ["N"])


def test_it_verifies_and_is_the_current_one(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_bundle(bundle.path.parent) == bundle.path
    assert main(["verify", str(bundle.path.parent)]) == 0
    bundle.warm_up()


def test_the_example_has_a_user_without_history(bundle: Bundle) -> None:
    example = load_arrays(bundle.path / EXAMPLE)
    assert example["input.excluded_items"].shape[0] == 7
    history = example.get("input.history_items", example.get("input.new_items"))
    assert history is not None
    assert (history < 0).all(axis=1).any()


def test_a_worker_serves_it(bundle: Bundle, before: Bundle, tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    lines = [{"user": f"u{n % 5}", "item": f"i{n % 37}", "time": 1_767_000_000_000 + n * 1000} for n in range(60)]
    events.write_text("".join(json.dumps(line) + "\n" for line in lines))
    lists = []
    for one in (before, bundle):
        out = tmp_path / f"{one.manifest.model}.jsonl"
        assert worker(["replay", "--bundle", str(one.path), "--events", str(events), "--out", str(out)]) == 0
        lists.append([json.loads(line) for line in out.read_text().splitlines()])
    assert [one["user"] for one in lists[0]] == [other["user"] for other in lists[1]]
    assert {one["model"] for one in lists[1]} == {bundle.manifest.model}
    same = [len(set(one["items"]) & set(other["items"])) for one, other in zip(*lists, strict=True)]
    assert np.mean(same) >= 0.8 * K


def test_weights_and_items_may_be_quantised_apart(sasrec: Path, events: Path, tmp_path: Path) -> None:
    source = Bundle(sasrec)
    weights, items = quantized(source, None, True), quantized(source, INT8, False)
    assert not weights.has_items
    assert items.has_items
    assert {node.op_type for node in weights.model.graph.node} >= {"DequantizeLinear"}
    assert not any(tensor.data_type == onnx.TensorProto.INT8 for tensor in items.model.graph.initializer)
    assert quantize(sasrec, tmp_path / "out", events, "--max-loss", "0.9") == 0
    assert Bundle(tmp_path / "out").manifest.resident == source.manifest.resident


def test_candidates_in_16_bits_give_the_lists_of_before(
    before: Bundle, events: Path, tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantize(before.path, tmp_path, events, "--items-float16", "--no-weights-int8") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "top-5 overlap" in line]
    assert "1.000" in line
    bundle = Bundle(tmp_path)
    bundle.warm_up()
    assert bundle.manifest.resident == before.manifest.resident | FLOAT16
    assert bundle.manifest.row_multiple == 16
    feeds = contract.feeds_of(seed)
    contract.same_lists(contract.run(before, feeds), contract.run(bundle, feeds))
    test_a_row_that_is_written_at_run_time_is_found(bundle, seed)
    test_a_user_alone_gets_what_the_user_gets_in_a_batch(bundle)
    test_the_contract_holds(bundle, seed)
    assert quantize(tmp_path, tmp_path / "again", events, "--items-int8", "--no-weights-int8") == 3  # nor both


def test_what_it_prints(sasrec: Path, events: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quantize(sasrec, tmp_path, events, "--items-int8", "--max-loss", "0.9", "--test-events", "50") == 0
    out = capsys.readouterr().out
    assert "48 test events of real users" in out
    for row in ("model.onnx, KiB", "items.npz, KiB", "batch 1 ", "batch 32", "top-5 overlap", "NDCG@10", "95 %"):
        assert row in out
    assert f"bundle: {find_bundle(tmp_path)}" in out


def test_a_loss_above_the_bound_is_refused_and_nothing_is_written(
    sasrec: Path, events: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantize(sasrec, tmp_path / "out", events, "--max-loss", "-0.9") == 3
    assert not (tmp_path / "out").exists()
    stderr = capsys.readouterr().err
    assert "more than --max-loss -90.00%. Nothing is written" in stderr
    assert stderr.count("\n") == 1
    models = sasrec.parent
    held = sorted(path.name for path in models.iterdir())
    assert quantize(sasrec, models, events, "--max-loss", "-0.9") == 3
    assert sorted(path.name for path in models.iterdir()) == held
    assert find_bundle(models) == sasrec


def test_there_is_nothing_to_quantise_in_popularity_nor_twice(
    exported: Callable[[str], Path], events: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantize(exported("popularity"), tmp_path / "out", events, "--items-int8") == 3
    assert "popularity has no product of items or weights in float32" in capsys.readouterr().err
    assert quantize(exported("mf"), tmp_path / "out", events, "--items-int8", "--max-loss", "0.9") == 0
    assert quantize(tmp_path / "out", tmp_path / "again", events, "--items-int8", "--max-loss", "0.9") == 3
    assert "mf has no product of items" in capsys.readouterr().err


def test_a_score_that_is_more_than_a_product_keeps_its_items(
    exported: Callable[[str], Path], events: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantize(exported("ncf"), tmp_path, events, "--items-int8", "--max-loss", "0.9") == 0
    assert "ncf has more to a score than a product here: its items stay in float32." in capsys.readouterr().out
    assert "item_steps" not in Bundle(tmp_path).manifest.resident


def test_weights_of_a_gru_are_found_behind_what_turns_them(before: Bundle) -> None:
    assert weights_to_int8(onnx.load(before.path / MODEL)) == WEIGHTS[before.manifest.name]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["quantize", "--out", "OUT", "--events", "EVENTS"], 2, "BUNDLE"),
        (["quantize", "BUNDLE", "--events", "EVENTS"], 2, "--out"),
        (["quantize", "absent", "--out", "OUT", "--events", "EVENTS"], 3, "no manifest.json and no current.json"),
        (["quantize", "BUNDLE", "--out", "OUT", "--events", "absent.csv"], 4, "absent.csv: no such file"),
        (["quantize", "BUNDLE", "--out", "EVENTS", "--events", "EVENTS"], 2, "--out"),
        (
            ["quantize", "BUNDLE", "--out", "OUT", "--events", "EVENTS", "--train-share", "1"],
            4,
            "no event after the cut",
        ),
        (["quantize", "BUNDLE", "--out", "OUT", "--events", "EVENTS", "--user-column", "who"], 4, "--user-column"),
        (["quantize", "BUNDLE", "--out", "OUT", "--events", "EVENTS", "--max-loss", "2"], 2, "--max-loss"),
        (["quantize", "BUNDLE", "--out", "OUT", "--events", "STRANGE"], 4, "knows no item"),
        (
            ["quantize", "BUNDLE", "--out", "OUT", "--events", "EVENTS", "--items-int8", "--items-float16"],
            2,
            "choose one",
        ),
        (
            ["quantize", "BUNDLE", "--out", "OUT", "--events", "EVENTS", "--no-weights-int8"],
            2,
            "nothing is left to quantise",
        ),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    arguments: list[str],
    code: int,
    message: str,
    sasrec: Path,
    events: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    strange = tmp_path / "strange.csv"
    strange.write_text("user,item,time\n" + "".join(f"u{n},x{n},{1_700_000_000 + n}\n" for n in range(20)))
    out = tmp_path / "out"
    places = {"BUNDLE": str(sasrec), "EVENTS": str(events), "OUT": str(out), "STRANGE": str(strange)}
    assert main([places.get(word, word) for word in arguments]) == code
    stderr = capsys.readouterr().err
    assert message in stderr
    assert stderr.startswith("exporter: ")
    assert stderr.count("\n") == 1
    assert not out.exists()
