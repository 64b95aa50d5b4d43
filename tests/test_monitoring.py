"""Rules, runbook and dashboard: true to the metrics, to each other, and to what promtool says."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream_worker.metrics import LATENCY_BUCKETS, Metrics
from tests import needs
from tests.manifests import ROOT, find

MONITORING = ROOT / "k8s" / "components" / "monitoring"
RUNBOOK = ROOT / "docs" / "runbook"
GROUPS: list[dict[str, Any]] = yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
TEST_FILES = sorted(MONITORING.glob("*.test.yaml"))
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
OTHERS = {"kube_pod_container_status_restarts_total"}  # of kube-state-metrics


def real() -> set[str]:
    """Every name that a worker shows, and every one that a rule records."""
    metrics = Metrics()
    names = {rule["record"] for rule in RULES if "record" in rule}
    for name, kind, _, _ in metrics.catalogue:
        names |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    return names | {sample.name for family in metrics.registry.collect() for sample in family.samples}


def used(query: str) -> set[str]:
    """The names of a query."""
    return set(re.findall(r"\b(?:stream_worker|process|kube|go|python)_?[a-z0-9_:]*\b", re.sub(r'"[^"]*"', "", query)))


@pytest.mark.parametrize("script", ["alerts.py", "dashboard.py"])
def test_what_is_generated_is_current(script: str) -> None:
    done = subprocess.run(
        [sys.executable, f"scripts/{script}", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: path.name)
def test_promtool_finds_each_alert_firing_when_it_should(path: Path) -> None:
    done = subprocess.run([needs.command("promtool"), "test", "rules", str(path)], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode()


def test_every_alert_is_tested_to_fire_and_not_to() -> None:
    cases = [case for path in TEST_FILES for test in yaml.safe_load(path.read_text())["tests"]
             for case in test.get("alert_rule_test", [])]  # fmt: skip
    names = {rule["alert"] for rule in ALERTS}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == names
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == names
    fired = {(case["alertname"], alert["exp_labels"].get("window")) for case in cases for alert in case["exp_alerts"]}
    assert len(fired) >= len(ALERTS) - 2, "the windows of the objective, too"


def test_the_operator_gets_the_rules_that_promtool_tests() -> None:
    assert find("examples/production", "PrometheusRule")["spec"]["groups"] == GROUPS


def test_the_cluster_gets_the_dashboard() -> None:
    found = find("examples/production", "ConfigMap", "stream-worker-dashboard")
    assert json.loads(found["data"]["stream-worker.json"]) == DASHBOARD
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_every_metric_in_a_rule_a_panel_or_a_trigger_is_real() -> None:
    triggers = find("examples/production", "ScaledObject")["spec"]["triggers"]
    queries = [rule["expr"] for rule in RULES] + QUERIES + [trigger["metadata"]["query"] for trigger in triggers]
    names = set().union(*map(used, queries))
    assert len(names) > 30
    assert names - real() - OTHERS == set()
    edges = {float(edge) for query in queries for edge in re.findall(r'le="([\d.]+)"', query)}
    assert edges == {0.3}
    assert edges <= set(LATENCY_BUCKETS)


def test_every_metric_of_a_runbook_page_is_real() -> None:
    known = real() | {name for name, _, _, _ in Metrics().catalogue}
    for path in RUNBOOK.glob("*.md"):
        names = set(re.findall(r"\b(?:stream_worker|process)_[a-z0-9_:]+\b", path.read_text()))
        assert names - known == set(), path.name


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in set().union(*map(used, QUERIES))}
    assert {name for name, _, _, _ in Metrics().catalogue} - shown == set()


def test_every_alert_has_a_page_that_says_what_to_do() -> None:
    pages = {rule["alert"]: rule["annotations"]["runbook_url"] for rule in ALERTS}
    overview = (RUNBOOK / "README.md").read_text()
    for alert, url in pages.items():
        text = (ROOT / url).read_text()
        assert text.startswith(f"# {alert}\n")
        assert re.findall(r"^## (.*)$", text, re.M) == ["What it means", "How to look", "What to do"]
        assert f"[{alert}]({Path(url).name})" in overview
    assert {Path(url).name for url in pages.values()} == {path.name for path in RUNBOOK.glob("*.md")} - {"README.md"}


def test_severities_are_those_of_the_runbook() -> None:
    rows = re.findall(r"^\| \[(\w+)\]\([^)]*\) \| ([a-z, ]+) \|", (RUNBOOK / "README.md").read_text(), re.M)
    said = {alert: set(severities.split(", ")) for alert, severities in rows}
    found: dict[str, set[str]] = {}
    for rule in ALERTS:
        found.setdefault(rule["alert"], set()).add(rule["labels"]["severity"])
    assert said == found


def test_a_drill_shortens_windows_and_nothing_else() -> None:
    script = [sys.executable, "scripts/alerts.py", "--faster", "60"]
    drill = subprocess.run(script, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    rules = [rule for group in yaml.safe_load(drill)["groups"] for rule in group["rules"]]
    for drilled, rule in zip(rules, RULES, strict=True):
        assert drilled.keys() == rule.keys()
        assert re.sub(r"\d+ms", "", drilled["expr"]) == re.sub(r"(?<=\[|\s)\d+[smhd]\b", "", rule["expr"])
        assert ("for" in rule) == drilled.get("for", "").endswith("ms")
    assert "[5000ms]" in drill
    assert "offset 60000ms" in drill
