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
from exporter.int8 import weights_to_int8
from exporter.quantize import in_int8
from stream_worker.bundle import Bundle
from stream_worker.cli import main as worker
from stream_worker.manifest import EXAMPLE, ITEMS, MODEL, ResidentEntry, find_bundle, load_arrays
from tests.exporter import test_contract as contract
from tests.exporter.conftest import NOW, K, N, catalogue, new_model, serving, write_events
from tests.exporter.test_int8 import session_of

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
    assert quantize(before.path, out, events, "--max-loss", "0.9") == 0
    return Bundle(out)


@pytest.fixture(scope="module")
def sasrec(exported: Callable[[str], Path]) -> Path:
    return exported("sasrec")


def quantize(bundle: Path, out: Path, events: Path, *flags: str) -> int:
    return main(["quantize", str(bundle), "--out", str(out), "--events", str(events), *flags])


def test_lists_and_scores_are_near_those_before(before: Bundle, bundle: Bundle, seed: int) -> None:
    feeds = contract.feeds_of(seed)
    one, other = contract.run(before, feeds), contract.run(bundle, feeds)
    assert overlap(one["items"], other["items"]) >= 0.8
    np.testing.assert_allclose(other["scores"], one["scores"], atol=0.05 * np.abs(one["scores"]).max())


def test_a_user_alone_gets_what_the_user_gets_in_a_batch(bundle: Bundle) -> None:
    feeds = contract.feeds_of(0)
    together = contract.run(bundle, feeds)
    for user in range(contract.USERS):
        alone = contract.run(bundle, contract.rows_of(feeds, slice(user, user + 1)))
        contract.same_lists(contract.rows_of(together, slice(user, user + 1)), alone)
    # A seed of its own: float sums over another padding may differ in the last bit, and a step is more than 1e-4.
    contract.test_a_user_gets_the_same_list_alone_in_any_batch_and_with_any_padding(bundle, 0)


def test_the_contract_holds(bundle: Bundle, seed: int) -> None:
    contract.test_nothing_is_nan_and_lists_are_full_and_sorted(bundle, seed, 3)
    contract.test_an_empty_history_gets_a_list(bundle)
    contract.test_excluded_items_are_never_recommended(bundle, seed)
    contract.test_row_0_is_excluded_beside_padding_and_padding_excludes_nothing(bundle)
    contract.test_rows_without_an_item_at_the_end_are_never_recommended(bundle, 0)
    contract.test_an_item_row_changed_at_run_time_counts(bundle, seed)
    if bundle.manifest.S:
        contract.test_no_new_event_changes_no_vector(bundle, seed)


def test_everything_is_smaller_and_the_manifest_says_so(before: Bundle, bundle: Bundle) -> None:
    was, now = before.manifest, bundle.manifest
    assert now.files[ITEMS].size < was.files[ITEMS].size
    # These graphs are all head and no body: of the weights alone.
    initializers = [onnx.load(one.path / MODEL).graph.initializer for one in (before, bundle)]
    large = [sum(len(t.raw_data) for t in tensors if len(t.dims) > 1 and t.dims[-1] > 1) for tensors in initializers]
    assert WEIGHTS[before.manifest.name] == 0 or large[1] < large[0] / 2
    assert (now.name, now.report, now.actions) == (was.name, was.report, was.actions)
    assert now.model != was.model
    assert now.resident["item_vectors"] == ResidentEntry("uint8", 128)
    assert bundle.items.tensors["item_scales"].shape == (N,)
    inputs = {entry.name: (entry.dtype, entry.shape) for entry in now.inputs}
    assert inputs["item_vectors"] == ("uint8", ["N", was.D])
    assert inputs["item_scales"] == ("float32", ["N"])


def test_it_verifies_and_is_the_current_one(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_bundle(bundle.path.parent) == bundle.path
    assert main(["verify", str(bundle.path.parent)]) == 0
    bundle.warm_up()


def test_the_example_stays_away_from_where_a_rounding_tips(before: Bundle, bundle: Bundle) -> None:
    """Another CPU, whose sums differ by a millionth, must find the same scores."""
    example = load_arrays(bundle.path / EXAMPLE)
    assert example["input.excluded_items"].shape[0] == 7
    history = example.get("input.history_items", example.get("input.new_items"))
    assert history is not None
    assert (history < 0).all(axis=1).any(), "a user without history"
    small = in_int8(before, True, True)
    session = session_of(_with_output(small.model, small.stepped[0]), bundle.path.parent)
    feeds = {name.removeprefix("input."): array for name, array in example.items() if name.startswith("input.")}
    (steps_BD,) = session.run(small.stepped, feeds | bundle.items.tensors)
    margin_B = np.abs(steps_BD - np.floor(steps_BD) - 0.5).min(axis=1)
    assert (margin_B[(history >= 0).any(axis=1)] > 1e-3).all()


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
    weights, items = in_int8(source, False, True), in_int8(source, True, False)
    assert weights.tensors["item_vectors"].dtype == np.float32
    assert {node.op_type for node in weights.model.graph.node} >= {"DequantizeLinear"}
    assert not any(tensor.data_type == onnx.TensorProto.INT8 for tensor in items.model.graph.initializer)
    assert quantize(sasrec, tmp_path / "out", events, "--no-items-int8", "--max-loss", "0.9") == 0
    assert Bundle(tmp_path / "out").manifest.resident == source.manifest.resident


def test_what_it_prints(sasrec: Path, events: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quantize(sasrec, tmp_path, events, "--max-loss", "0.9", "--test-events", "50") == 0
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
    assert quantize(exported("popularity"), tmp_path / "out", events) == 3
    assert "popularity has no item vectors or weights in float32" in capsys.readouterr().err
    assert quantize(exported("mf"), tmp_path / "out", events, "--max-loss", "0.9") == 0
    assert quantize(tmp_path / "out", tmp_path / "again", events, "--max-loss", "0.9") == 3
    assert "mf has no item vectors" in capsys.readouterr().err


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
            ["quantize", "BUNDLE", "--out", "OUT", "--events", "EVENTS", "--no-items-int8", "--no-weights-int8"],
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


def _with_output(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["B", None]))
    return model
