"""Texts as vectors: by a tiny sentence-transformers model with random weights, made here; and what goes wrong."""

import importlib.util
import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from exporter.cli import main
from stream_worker.bundle import Bundle, ItemRow
from stream_worker.content import text_of
from tests.exporter.conftest import write_events

INSTALLED = importlib.util.find_spec("sentence_transformers") is not None
SIZE = 16
WORDS = ["item", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", ":", ".", ",", "kind", "red", "blue"]

encoding = pytest.mark.skipif(
    not INSTALLED, reason="sentence-transformers is not installed: uv sync --inexact --extra demo --extra text"
)


def items(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def catalogue(path: Path, count: int = 40) -> Path:
    rows = [{"item": f"i{n}", "title": f"Item {n}", "kind": "red" if n % 2 else "blue"} for n in range(count)]
    return items(path, rows)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `SentenceTransformer(…).save(…)` writes it."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    parts, folder = tmp_path_factory.mktemp("parts"), tmp_path_factory.mktemp("encoder")
    vocabulary = parts / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    torch.manual_seed(0)
    size = {"hidden_size": SIZE, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": SIZE}
    BertModel(BertConfig(vocab_size=5 + len(WORDS), initializer_range=1.0, **size)).eval().save_pretrained(parts)
    BertTokenizerFast(str(vocabulary)).save_pretrained(parts)
    modules = [Transformer(str(parts)), Pooling(SIZE)]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder))
    return folder


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("nothing may be downloaded")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def embed(source: Path, encoder: Path, out: Path, *more: str) -> int:
    flags = ["--device", "cpu", "--threads", "1", *more]
    return main(["embed", "--items", str(source), "--text-encoder", str(encoder), "--out", str(out), *flags])


@encoding
@pytest.mark.train
def test_each_item_has_the_vector_of_its_text_whatever_the_file(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sentence_transformers import SentenceTransformer

    source = catalogue(tmp_path / "items.jsonl")
    assert embed(source, encoder, tmp_path / "out.parquet") == 0
    assert "40 items, a vector of 16 numbers each, --content-vectors text_vector" in capsys.readouterr().out
    table = pl.read_parquet(tmp_path / "out.parquet")
    assert table.columns == ["item", "title", "kind", "text_vector"]
    assert table["text_vector"].dtype == pl.List(pl.Float32)
    assert table.drop("text_vector").equals(pl.read_ndjson(source))
    vectors_nV = np.array(table["text_vector"].to_list(), np.float32)
    model = SentenceTransformer(str(encoder), device="cpu", local_files_only=True)
    expected_nV = model.encode([text_of(f"Item {n}", {"kind": "red" if n % 2 else "blue"}) for n in range(40)])
    np.testing.assert_allclose(vectors_nV, expected_nV, atol=1e-5)
    assert np.abs(vectors_nV[0] - vectors_nV[1]).max() > 0.01, "the text is seen"

    pl.read_ndjson(source).write_csv(tmp_path / "items.csv")
    for again in (tmp_path / "items.csv", tmp_path / "out.parquet"):  # the second has the column already
        assert embed(again, encoder, tmp_path / "out.jsonl") == 0
        found = pl.read_ndjson(tmp_path / "out.jsonl")
        assert found.columns == table.columns
        np.testing.assert_allclose(np.array(found["text_vector"].to_list()), vectors_nV, atol=1e-5)
    assert not list(tmp_path.glob(".*")), "nothing is left beside"


@encoding
@pytest.mark.train
def test_a_new_item_embedded_later_gets_the_vector_that_training_would_have_given_it(
    encoder: Path, tmp_path: Path
) -> None:
    assert embed(catalogue(tmp_path / "items.jsonl"), encoder, tmp_path / "items.parquet") == 0
    events, models = write_events(tmp_path / "events.csv"), tmp_path / "models"
    data = ["--events", str(events), "--items", str(tmp_path / "items.parquet"), "--content-vectors", "text_vector"]
    small = ["--dim", "16", "--max-epochs", "1", "--no-refit", "--threads", "1", "--device", "cpu"]
    assert main(["train", *data, "--model", "two-tower", "--out", str(models), *small]) == 0
    bundle = Bundle(models)
    cold = 39  # in the catalogue, and without an event: known by its content alone
    new = items(tmp_path / "new.jsonl", [{"item": "new", "title": "Item 39", "kind": "red"}])
    assert embed(new, encoder, tmp_path / "new.parquet") == 0
    (row,) = pl.read_parquet(tmp_path / "new.parquet").iter_rows(named=True)
    attributes = {"kind": row["kind"], "text_vector": row["text_vector"]}
    encoded = bundle.encode_items([ItemRow("new", row["title"], attributes)])
    np.testing.assert_allclose(encoded["item_vectors"][0], bundle.items.tensors["item_vectors"][cold], atol=1e-4)


@encoding
@pytest.mark.train
def test_a_folder_that_only_looks_like_one_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "modules.json").write_text("[")
    assert embed(catalogue(tmp_path / "items.jsonl"), folder, tmp_path / "out.parquet") == 2
    assert "not readable by sentence-transformers" in capsys.readouterr().err


@pytest.mark.skipif(INSTALLED, reason="sentence-transformers is installed")
def test_without_its_package_the_extra_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "modules.json").write_text("[]")
    assert embed(catalogue(tmp_path / "items.jsonl"), folder, tmp_path / "out.parquet") == 2
    assert "the extra `text`" in capsys.readouterr().err
    assert not (tmp_path / "out.parquet").exists()


def test_what_is_no_encoder_is_said_before_anything_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert embed(tmp_path / "absent.csv", tmp_path / "absent", tmp_path / "out.parquet") == 2
    assert "no such folder. Nothing is downloaded" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")  # of transformers, whose folders have no pooling
    assert embed(tmp_path / "absent.csv", tmp_path, tmp_path / "out.parquet") == 2
    assert "it has no modules.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("out", "message"), [("out.csv", "CSV has no lists"), ("absent/out.parquet", "absent is no directory")]
)
def test_a_file_that_cannot_hold_vectors_is_refused(
    out: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert embed(catalogue(tmp_path / "items.jsonl"), tmp_path, tmp_path / out) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        ([{"item": "a", "title": "A"}, {"item": "b", "title": " "}], [], "1 of 2 items have neither title nor"),
        ([{"item": "a", "title": None, "kind": None}], [], "the first is 'a'"),
        ([{"item": "a", "name": "A"}], ["--title-column", "heading"], "no column 'heading'"),
        ([{"id": "a", "title": "A"}], [], "no column 'item'"),
    ],
)
def test_an_item_without_a_text_is_named(
    rows: list[dict[str, Any]], flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "modules.json").write_text("[]")
    assert embed(items(tmp_path / "items.jsonl", rows), tmp_path, tmp_path / "out.parquet", *flags) == 4
    assert message in capsys.readouterr().err
