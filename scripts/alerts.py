"""Write rules.yaml as the Prometheus operator takes it, prometheus-rule.yaml beside it; `--check` only compares.

`--faster 60` prints the rules with every window and every `for` a sixtieth as long, for drills (docs/runbook).
"""

import re
import sys
import textwrap
from pathlib import Path

HERE = Path(__file__).resolve().parents[1] / "k8s" / "components" / "monitoring"
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

RULE_HEAD = """\
# Written by scripts/alerts.py from rules.yaml: change that.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: stream-worker
  labels:
    app.kubernetes.io/name: stream-worker
spec:
"""


def prometheus_rule(rules: str) -> str:
    """The rules as the operator takes them."""
    return RULE_HEAD + textwrap.indent(rules[rules.index("groups:") :], "  ")


def faster(rules: str, factor: float) -> str:
    """The rules with shorter windows; their thresholds and names stay as they are."""

    def shorter(match: re.Match[str]) -> str:
        before, number, unit = match.groups()
        return f"{before}{max(1, round(int(number) * SECONDS[unit] * 1000 / factor))}ms"

    return re.sub(r"(\[|\bfor: |\boffset )(\d+)([smhd])\b", shorter, rules)


def main() -> int:
    """Write, compare, or print."""
    rules = (HERE / "rules.yaml").read_text()
    if "--faster" in sys.argv:
        sys.stdout.write(faster(rules, float(sys.argv[sys.argv.index("--faster") + 1])))
        return 0
    target, wanted = HERE / "prometheus-rule.yaml", prometheus_rule(rules)
    if target.exists() and target.read_text() == wanted:
        return 0
    if "--check" in sys.argv:
        sys.stderr.write("prometheus-rule.yaml is not rules.yaml; run .venv/bin/python scripts/alerts.py\n")
        return 1
    target.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
