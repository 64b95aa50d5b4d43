"""The alerts, on incidents that are staged on real workers; and the dashboard, on a live one."""

import itertools
import json
import math
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from demo.broker import Broker
from tests.manifests import find
from tests.worker.monitoring import Alertmanager, Prometheus, Webhook
from tests.worker.process import Stage, wait_for

ROOT = Path(__file__).resolve().parents[2]
FASTER = 60  # five minutes are five seconds
# Of the other alerts, those that a loaded machine does not raise, either.
UNCONCERNED = ("EventsLost", "TopicsMissing", "CheckpointsFailing", "Lagging", "Stuck", "Restarting")


def test_two_incidents_fire_into_a_real_alertmanager(
    broker: Broker, models: dict[str, Path], tmp_path: Path, unique: Callable[[str], str], seed: int
) -> None:
    """A producer begins to send what is no event, and a worker is started that finds no partition for itself."""
    script = [sys.executable, str(ROOT / "scripts" / "alerts.py"), "--faster", str(FASTER)]
    rules = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    rng = random.Random(seed)
    with (
        Stage(broker, models["popularity"], tmp_path, unique, partitions=1) as stage,
        Webhook() as webhook,
        Alertmanager(tmp_path, webhook) as alertmanager,
    ):
        worker = stage.worker("--max-reject-share", "1")
        with Prometheus(tmp_path, [worker.port], rules, alertmanager, step="250ms") as prometheus:

            def traffic(bad: int) -> None:
                stage.send((f"u{rng.randrange(50)}", f"i{rng.randrange(60)}") for _ in range(20))
                for _ in range(bad):
                    stage.send_raw(b"click!", b"u1")

            def partitions_counted() -> bool:
                traffic(bad=0)
                return bool(prometheus.query("stream_worker:partitions:count == 1"))

            wait_for("a quiet day", partitions_counted)
            assert webhook.told("StreamWorkerRejects") == []
            spare = stage.worker(ready=False)
            wait_for("the second worker to answer", lambda: spare.get("/metrics")[0] == 200)
            prometheus.scrape([worker.port, spare.port])

            def both_told() -> bool:
                traffic(bad=5)
                return bool(webhook.told("StreamWorkerRejects") and webhook.told("StreamWorkerWithoutPartitions"))

            wait_for("both alerts", both_told)
            rejects = webhook.told("StreamWorkerRejects")[0]
            idle = webhook.told("StreamWorkerWithoutPartitions")[0]
            assert rejects["labels"]["severity"] == "warning"
            assert "of the events are rejected" in rejects["annotations"]["summary"]
            assert idle["labels"]["instance"] == f"127.0.0.1:{spare.port}"
            for alert in (rejects, idle):
                assert (ROOT / alert["annotations"]["runbook_url"]).is_file()

            def rejects_over() -> bool:
                traffic(bad=0)
                return bool(webhook.told("StreamWorkerRejects", "resolved"))

            wait_for("the producer to be mended", rejects_over)
        told = {alert["labels"]["alertname"] for alert in webhook.alerts}
        assert told.isdisjoint({f"StreamWorker{name}" for name in UNCONCERNED})


def test_every_panel_of_the_dashboard_shows_data_and_keda_gets_one_number(
    broker: Broker, models: dict[str, Path], tmp_path: Path, unique: Callable[[str], str], seed: int
) -> None:
    dashboard = json.loads((ROOT / "k8s" / "components" / "monitoring" / "dashboard.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    queries = {
        f"{panel['title']}: {target['legendFormat']}": target["expr"] for panel in panels for target in panel["targets"]
    }
    assert len(queries) > 40
    variables = {"$__rate_interval": "10s", "$window": "30s", "$job": "stream-worker", "$namespace": ".*"}
    for name, query in queries.items():
        for variable, value in variables.items():
            query = query.replace(variable, value)
        assert "$" not in query, query
        queries[name] = query
    rng = random.Random(seed)
    strangers = itertools.count(1000)
    with Stage(broker, models["sasrec"], tmp_path, unique) as stage:
        worker = stage.worker("--max-reject-share", "1")
        with Prometheus(tmp_path, [worker.port]) as prometheus:
            waiting = dict(queries)

            def shown() -> bool:
                """More traffic of all sorts; then ask again what had no answer yet."""
                stage.send((f"u{rng.randrange(40)}", f"i{rng.randrange(70)}") for _ in range(50))  # ten are unknown
                stage.send((f"u{next(strangers)}", "i1") for _ in range(5))  # who had no list of their own
                stage.send_raw(b"click!", b"u1")
                for name, query in list(waiting.items()):
                    found = prometheus.query(query)
                    if found and all(math.isfinite(value) for value in found.values()):
                        del waiting[name]
                return not waiting

            try:
                wait_for("data in every panel", shown)
            except AssertionError as error:
                raise AssertionError(f"no data: {waiting}") from error
            for trigger in find("examples/production", "ScaledObject")["spec"]["triggers"]:
                query = re.sub(r'namespace="[^"]*"', 'namespace=""', trigger["metadata"]["query"])
                query = re.sub(r"\[\dm\]", "[10s]", query)
                (number,) = prometheus.query(query).values()
                assert math.isfinite(number), query
            assert prometheus.query(queries["Stages: {{stage}}"]).keys() == {
                json.dumps({"stage": stage}) for stage in
                ("poll", "decode", "fold", "batch", "infer", "encode", "publish", "checkpoint")
            }  # fmt: skip
