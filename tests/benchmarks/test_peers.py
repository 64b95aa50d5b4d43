"""When two contenders did the same work, and what is said of two results."""

import json
from pathlib import Path

import pytest

from benchmarks import compare
from benchmarks.errors import BenchmarkError
from benchmarks.peers.agreement import Answer, check

OURS = {b"u": Answer(7, ["a", "b", "c"], [3.0, 2.0, 1.0])}


def agree(other: Answer | None) -> None:
    check("worker", OURS, "peer", {} if other is None else {b"u": other}, [b"u"])


@pytest.mark.parametrize(
    "other",
    [
        Answer(7, ["a", "b", "c"], [3.0, 2.000001, 1.0]),
        Answer(7, ["a", "b", "d"], [3.0, 2.0, 1.00001]),  # c and d are as good as each other
    ],
)
def test_rounding_is_no_difference(other: Answer) -> None:
    agree(other)


@pytest.mark.parametrize(
    "other",
    [
        None,
        Answer(6, ["a", "b", "c"], [3.0, 2.0, 1.0]),
        Answer(7, ["b", "a", "c"], [3.0, 2.0, 1.0]),
        Answer(7, ["a", "x", "c"], [3.0, 2.0, 1.0]),
        Answer(7, ["a", "b", "c"], [3.0, 2.0, 0.9]),
        Answer(7, ["a", "b"], [3.0, 2.0]),
    ],
)
def test_another_list_ends_the_benchmark_and_names_the_user(other: Answer | None) -> None:
    with pytest.raises(BenchmarkError, match="peer does not do the same as worker: user 'u'"):
        agree(other)


def test_compare_prints_new_over_old_and_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = {"benchmark": "bars", "seed": 0, "backlog": {"worker": {"events_per_s": 100.0, "repeats": {"x": [1]}}}}
    new = {"benchmark": "bars", "seed": 1, "backlog": {"worker": {"events_per_s": 150.0}}}
    for name, result in (("old", old), ("new", new)):
        (tmp_path / name).write_text(json.dumps(result))
    assert compare.main([str(tmp_path / "old"), str(tmp_path / "new")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "! seed: 0 then 1"
    assert said[1].split() == ["backlog", "worker", "events_per_s", "100.00", "150.00", "1.50"]
    assert len(said) == 2


def test_compare_of_no_result_says_so(tmp_path: Path) -> None:
    assert compare.main([str(tmp_path / "none"), str(tmp_path / "none")]) == 1
