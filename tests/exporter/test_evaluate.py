"""`exporter evaluate` and `compare` as a user types them: figures on the console, in JSON, and on a page."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from exporter.cli import main
from exporter.evaluate.report import Comparison, Report
from stream_worker.manifest import find_bundle, read_manifest
from tests.exporter.conftest import write_events


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_events(tmp_path_factory.mktemp("events") / "events.csv")


@pytest.fixture(scope="module")
def models(events: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Popularity from all of the training part, and from few events."""
    paths = {}
    for name, share in (("whole", "0.8"), ("poor", "0.1")):
        paths[name] = tmp_path_factory.mktemp(name)
        train = ["--events", str(events), "--model", "popularity", "--out", str(paths[name]), "--train-share", share]
        assert main(["train", *train]) == 0
    return paths


class Page(HTMLParser):
    """What a browser would see: text, plots, and anything it would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.foreign: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if tag in ("script", "link", "img", "iframe") or any(name in ("src", "href") for name, _ in attrs):
            self.foreign.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text())
    page.close()
    assert page.open == []
    assert page.foreign == []
    assert "url(" not in path.read_text()
    return page


@pytest.mark.parametrize("protocol", ["prequential", "leave-one-out", "time-split"])
def test_evaluate_prints_and_writes_the_same_figures(
    events: Path, models: dict[str, Path], tmp_path: Path, protocol: str, capsys: pytest.CaptureFixture[str]
) -> None:
    json, html = tmp_path / "report.json", tmp_path / "report.html"
    arguments = ["--bundle", str(models["whole"]), "--events", str(events), "--protocol", protocol]
    assert main(["evaluate", *arguments, "--json", str(json), "--html", str(html)]) == 0
    out = capsys.readouterr().out
    report = msgspec.json.decode(json.read_bytes(), type=Report)
    name = find_bundle(models["whole"]).name
    assert (report.bundle, report.protocol, report.events, report.ks) == (name, protocol, "events.csv", [1, 5, 10, 20])
    assert sum(one.targets for one in report.slices["activity"]) == report.targets
    assert f"{report.lists:,} lists" in out
    assert "rebalance" not in out, "the worker in memory does not log"
    hit_rate = report.metrics["hr@10"]
    assert hit_rate.low <= hit_rate.value <= hit_rate.high
    assert f"{hit_rate.value:.3f} ± " in out
    page = read(html)
    assert name in page.text
    for figure in report.metrics.values():
        assert f"{figure.value:.4f}" in page.text
    for plot in re.findall(r"<svg.*?</svg>", html.read_text(), re.S):
        assert ET.fromstring(plot).attrib["role"] == "img"
    assert html.read_text().count("<svg") >= 8
    if protocol == "prequential":
        assert report.judged["own"].judged + report.judged["default"].judged == report.lists
        assert report.metrics["hr@10"].value == pytest.approx(
            read_manifest(find_bundle(models["whole"])).report["served_hr@10"], abs=0.02
        ), "but for ties, of which popularity has many"
        assert "the worker's own judge" in out


def test_compare_pairs_two_bundles(
    events: Path, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    json, html = tmp_path / "report.json", tmp_path / "report.html"
    paths = [str(models["poor"]), str(models["whole"])]
    assert main(["compare", *paths, "--events", str(events), "--json", str(json), "--html", str(html)]) == 0
    found = msgspec.json.decode(json.read_bytes(), type=Comparison)
    difference = found.differences["hr@10"]
    assert difference.value == pytest.approx(found.b.metrics["hr@10"].value - found.a.metrics["hr@10"].value, abs=2e-5)
    assert difference.low <= difference.value <= difference.high
    assert found.a.lists == found.b.lists
    page = read(html)
    assert f"{difference.value:+.4f}" in page.text
    assert found.a.bundle in page.text
    assert found.b.bundle in page.text
    assert "B - A" in capsys.readouterr().out
    assert main(["compare", paths[0], paths[0], "--events", str(events), "--json", str(json)]) == 0
    itself = msgspec.json.decode(json.read_bytes(), type=Comparison)
    assert {(each.value, each.low, each.high) for each in itself.differences.values()} == {(0, 0, 0)}


def test_places_may_be_chosen(events: Path, models: dict[str, Path], tmp_path: Path) -> None:
    json = tmp_path / "report.json"
    arguments = ["--bundle", str(models["whole"]), "--events", str(events), "--ks", "7,3", "--json", str(json)]
    assert main(["evaluate", *arguments]) == 0
    report = msgspec.json.decode(json.read_bytes(), type=Report)
    assert (report.ks, report.headline) == ([3, 7], 7)
    assert {"hr@3", "hr@7", "novelty@7"} <= report.metrics.keys()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["evaluate", "--events", "EVENTS"], 2, "--bundle"),
        (["evaluate", "--bundle", "absent", "--events", "EVENTS"], 3, "no manifest.json"),
        (["evaluate", "--bundle", "WHOLE", "--events", "absent.csv"], 4, "absent.csv: no such file"),
        (["evaluate", "--bundle", "WHOLE", "--events", "EVENTS", "--ks", "50"], 2, "lists have 20 items"),
        (["evaluate", "--bundle", "WHOLE", "--events", "EVENTS", "--ks", "0"], 2, "--ks"),
        (["evaluate", "--bundle", "WHOLE", "--events", "EVENTS", "--protocol", "hindsight"], 2, "--protocol"),
        (["evaluate", "--bundle", "WHOLE", "--events", "EVENTS", "--history-length", "9"], 2, "Raise it to"),
        (["evaluate", "--bundle", "WHOLE", "--events", "EVENTS", "--train-share", "1"], 4, "Lower --train-share"),
        (["evaluate", "--bundle", "WHOLE", "--events", "EVENTS", "--json", "/absent/x.json"], 2, "--json /absent"),
        (["compare", "WHOLE", "--events", "EVENTS"], 2, "B"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    arguments: list[str],
    code: int,
    message: str,
    events: Path,
    models: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"EVENTS": str(events), "WHOLE": str(models["whole"])}
    capsys.readouterr()
    assert main([places.get(word, word) for word in arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("exporter: ")
    assert error.count("\n") == 1
