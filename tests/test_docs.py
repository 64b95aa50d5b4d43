"""The docs say what the code does, and all of it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
RUNBOOK = sorted((ROOT / "docs" / "runbook").glob("*.md"))


def test_every_setting_and_metric_is_documented_as_it_is() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/reference.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_reason_for_a_rejection_is_documented() -> None:
    source = (ROOT / "stream_worker" / "messages.py").read_text()
    reasons = set(re.findall(r'RejectedEventError\(\s*"(\w+)"', source))
    documented = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "formats.md").read_text(), re.M))
    assert len(reasons) >= 9
    assert reasons <= documented


@pytest.mark.parametrize("page", [ROOT / "README.md", *DOCS, *RUNBOOK], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_links_every_page_and_names_every_command() -> None:
    readme = (ROOT / "README.md").read_text()
    assert {page.name for page in DOCS if f"docs/{page.name}" not in readme} == set()
    from exporter.cli import COMMANDS as EXPORTER
    from stream_worker.cli import COMMANDS

    for name in COMMANDS:
        assert f"stream-worker {name}" in readme
    for name in EXPORTER:
        assert f"exporter {name}" in readme


def test_the_site_holds_the_sources_it_links_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    done = subprocess.run(["scripts/site", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    page = (tmp_path / "your-model.html").read_text()
    (link,) = set(re.findall(r'href="([^"]*base\.py[^"]*)"', page))
    assert ">Recommender</span>" in (tmp_path / link).read_text()
    for built in tmp_path.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|source)\b[^>]*?\bsrc(?:set)?="([^"]*)"', built.read_text())
        loaded += re.findall(r'<link rel="(?:stylesheet|preconnect|icon)"[^>]*?href="([^"]*)"', built.read_text())
        assert [target for target in loaded if "//" in target] == [], built


def test_tests_named_in_the_guarantees_exist() -> None:
    named = set(re.findall(r"`(test_\w+)", (ROOT / "docs" / "guarantees.md").read_text()))
    defined = {
        node.name
        for path in (ROOT / "tests").glob("*/test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert named
    assert all(any(test.startswith(name) for test in defined) for name in named)


def test_the_worker_imports_nothing_of_the_trainer() -> None:
    code = (
        "import sys\n"
        "import stream_worker.cli, stream_worker.transports.kafka, stream_worker.transports.librdkafka\n"
        "bad = {'torch', 'exporter', 'polars', 'onnx', 'tensorboard'} & sys.modules.keys()\n"
        "print(sorted(bad))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_no_machine_path_and_no_pickle() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in tracked:
        path = ROOT / name
        if path.suffix not in {".py", ".md", ".yaml", ".toml", ".sh", ""} or not path.is_file():
            continue
        text = path.read_text()
        assert not re.search(r"/(?:work|root)/(?:main|shared)", text), name
        if name.startswith(("stream_worker/", "exporter/")):
            assert not re.search(r"^\s*(?:import|from) pickle", text, re.M), name
