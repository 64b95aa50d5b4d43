"""Write Grafana's dashboard, k8s/components/monitoring/dashboard.json; `--check` only compares."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parents[1] / "k8s" / "components" / "monitoring" / "dashboard.json"
DATASOURCE = {"type": "prometheus", "uid": "$datasource"}
WIDTH = 24  # of Grafana's grid


@dataclass(frozen=True)
class Panel:
    """One picture.

    Args:
        title: see there; `text` is what the (i) shows.
        unit: Grafana's name of it.
        queries: PromQL by legend. `OURS` stands for the selector of the dashboard's variables, `RATE` for its interval.
        kind: timeseries, stat or heatmap.
        width, height: of 24 columns; rows of 30 pixels.
        stack: lay the lines on top of each other.
        log: a logarithmic axis.
    """

    title: str
    text: str
    unit: str
    queries: dict[str, str]
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    stack: bool = False
    log: bool = False
    thresholds: dict[float, str] = field(default_factory=dict)  # color from this value on


def quantile(q: float, name: str) -> str:
    """Of a histogram."""
    return f"histogram_quantile({q}, sum by (le) (rate(stream_worker_{name}_bucket{{OURS}}[RATE])))"


def rate(name: str, *by: str) -> str:
    """Of a counter, a second."""
    by_clause = f" by ({', '.join(by)})" if by else ""
    return f"sum{by_clause} (rate(stream_worker_{name}{{OURS}}[RATE]))"


def gauge(function: str, name: str, *by: str) -> str:
    """Of a gauge."""
    by_clause = f" by ({', '.join(by)})" if by else ""
    return f"{function}{by_clause} (stream_worker_{name}{{OURS}})"


def or_zero(query: str) -> str:
    """A counter whose label has no value yet shows 0, not an empty panel."""
    return f"{query} or vector(0)"


def hit_rate(k: int, kind: str) -> str:
    """HR@k of the lists of a kind."""
    return (
        f'sum(rate(stream_worker_hits_total{{OURS,k="{k}",list="{kind}"}}[$window]))'
        f' / sum(rate(stream_worker_judged_total{{OURS,list="{kind}"}}[$window]))'
    )


IN_TIME = (
    'sum(rate(stream_worker_event_to_list_seconds_bucket{OURS,le="0.3"}[$window]))'
    " / sum(rate(stream_worker_event_to_list_seconds_count{OURS}[$window]))"
)
MEAN_BATCH = (
    "sum(rate(stream_worker_batch_users_sum{OURS}[RATE])) / sum(rate(stream_worker_batch_users_count{OURS}[RATE]))"
)
MEAN_RESTORE = "sum(stream_worker_restore_seconds_sum{OURS}) / sum(stream_worker_restore_seconds_count{OURS})"

ROWS: dict[str, list[Panel]] = {
    "Lists": [
        Panel("Event to list, p99", "99 % of the lists come sooner after the oldest event they are the first to cover.",
              "s", {"": quantile(0.99, "event_to_list_seconds")}, "stat", 4, 4, thresholds={0: "green", 0.3: "red"}),
        Panel("Within 0.3 s", "Share of the lists; the objective is 99 %.",
              "percentunit", {"": IN_TIME}, "stat", 4, 4, thresholds={0: "red", 0.99: "green"}),
        Panel("Lists", "Acknowledged by the broker.", "cps", {"": rate("lists_total")}, "stat", 4, 4),
        Panel("HR@10", "Share of the events whose item was among the first ten of the user's own list before.",
              "percentunit", {"": hit_rate(10, "own")}, "stat", 4, 4),
        Panel("Workers", "That answer, and that are ready: the broker answers, their states are complete.", "none",
              {"answer": gauge("count", "last_step_timestamp_seconds"), "ready": gauge("sum", "ready")}, "stat", 4, 4),
        Panel("Furthest behind", "Age of the last record polled, of the partition that is worst.",
              "s", {"": gauge("max", "lag_seconds")}, "stat", 4, 4, thresholds={0: "green", 10: "orange", 60: "red"}),
        Panel("Event to list", "From the Kafka timestamp to the acknowledgement.", "s",
              {f"p{q * 100:g}": quantile(q, "event_to_list_seconds") for q in (0.5, 0.95, 0.99)}, log=True),
        Panel("Event to list, all of it", "How many lists took how long.", "s",
              {"{{le}}": "sum by (le) (increase(stream_worker_event_to_list_seconds_bucket{OURS}[RATE]))"}, "heatmap"),
        Panel("Events and lists", "A list may cover several events of a user: coalesced.", "cps",
              {"events": rate("events_total"), "lists": rate("lists_total"), "coalesced": rate("coalesced_total")}),
    ],
    "Where the time goes": [
        Panel("Stages", "Seconds of each second, summed over the workers. poll is mostly waiting.", "s",
              {"{{stage}}": rate("stage_seconds_sum", "stage")}, width=12, stack=True),
        Panel("Users in a batch", "The graph takes many users at once when there are many.", "none",
              {"mean": MEAN_BATCH, "p95": quantile(0.95, "batch_users")}, width=6),
        Panel("Waiting for a list", "Users with events that no list covers yet.", "none",
              {"users": gauge("sum", "pending_users")}, width=6),
    ],
    "Kafka": [
        Panel("Lag, seconds", "Age of the last record polled, 0 without lag.", "s",
              {"partition {{partition}}": gauge("max", "lag_seconds", "partition")}),
        Panel("Lag, records", "Not yet polled.", "none", {"records": gauge("sum", "lag_records")}, width=4),
        Panel("Partitions of each worker", "And those whose state is being read.", "none",
              {"{{instance}}": gauge("count", "restoring", "instance"),
               "restoring": gauge("sum", "restoring")}, width=4),
        Panel("Rebalances", "Changes of the assignment, in ten minutes.", "none",
              {"": "sum(increase(stream_worker_rebalances_total{OURS}[10m]))"}, width=4),
        Panel("In flight", "Produced, and not yet acknowledged; and topics that are gone.", "bytes",
              {"bytes": gauge("sum", "in_flight_bytes"), "topics missing": gauge("max", "topics_missing")}, width=4),
    ],
    "State": [
        Panel("Checkpoint age", "Time since all was written that a crash would make a worker fold again.", "s",
              {"{{instance}}": gauge("max", "checkpoint_age_seconds", "instance")}, width=6),
        Panel("Checkpoints take", "From the copy of the changed states to their confirmation.", "s",
              {f"p{q * 100:g}": quantile(q, "checkpoint_seconds") for q in (0.5, 0.99)}, width=6),
        Panel("Checkpoints that failed", "By cause; they are tried again. And states written.", "cps",
              {"{{cause}}": rate("checkpoint_failures_total", "cause"),
               "states": rate("checkpoint_users_total")}, width=6),
        Panel("A restore takes", "From the assignment of a partition to its state being complete, mean of all.", "s",
              {"": MEAN_RESTORE}, width=6),
        Panel("Users", "Held in memory, by partition.", "none",
              {"partition {{partition}}": gauge("sum", "users", "partition")}, stack=True),
        Panel("State", "Bytes of the slabs.", "bytes",
              {"{{instance}}": gauge("sum", "state_bytes", "instance")}, stack=True),
        Panel("Forgotten users", "For room, by age, or on request.", "cps",
              {"{{reason}}": rate("evicted_total", "reason")}),
    ],
    "What comes in": [
        Panel("Events", "Folded, by action.", "cps",
              {"{{action}}": rate("events_total", "action")}, width=6, stack=True),
        Panel("Rejected", "Not well formed; kept on the rejected topic with the reason.", "cps",
              {"{{reason}}": or_zero(rate("rejected_total", "reason"))}, width=6),
        Panel("Late, repeated, unknown", "Folded all the same.", "cps",
              {"late": rate("late_total"), "repeated": rate("duplicates_total"),
               "unknown {{kind}}": rate("unknown_total", "kind")}, width=6),
        Panel("Lost or late at the broker", "Deleted before they were read; records that were made anew.", "cps",
              {"lost events": rate("lost_events_total"),
               "not acknowledged: {{topic}}": rate("publish_failures_total", "topic")}, width=6),
    ],
    "Model": [
        Panel("Hit rate", "Of events whose user had a list of their own, and of those that had none yet.",
              "percentunit",
              {f"HR@{k} {kind}": hit_rate(k, kind) for k in (1, 10) for kind in ("own", "default")}, width=12),
        Panel("Age of the model", "Since it was exported.", "s",
              {"{{model}}": "max by (model) (stream_worker_model_age_seconds{OURS} * on (job, namespace, instance)"
               " group_left (model) stream_worker_model_info{OURS})"}, width=6),
        Panel("Models in use", "Workers by model, variant and device; and the items of the largest.", "none",
              {"{{model}} {{variant}} {{device}}": gauge("sum", "model_info", "model", "variant", "device"),
               "items": gauge("max", "item_rows")}, width=6),
    ],
    "Process": [
        Panel("CPU", "Seconds of each second.", "s",
              {"{{instance}}": "rate(process_cpu_seconds_total{OURS}[RATE])"}),
        Panel("Memory", "Resident.", "bytes", {"{{instance}}": "process_resident_memory_bytes{OURS}"}),
        Panel("Age", "Since the process began.", "s", {"{{instance}}": "time() - process_start_time_seconds{OURS}"}),
    ],
}  # fmt: skip


def variable(name: str, label: str) -> dict[str, Any]:
    """A choice of the values of a label, all at first; a label that is not there matches, too."""
    query = f"label_values(stream_worker_model_info, {name})"
    return {
        "name": name, "label": label, "type": "query", "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "definition": query, "refresh": 2, "includeAll": True, "allValue": ".*", "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }  # fmt: skip


def targets(panel: Panel) -> list[dict[str, Any]]:
    """The queries of a panel."""
    selector = 'job=~"$job",namespace=~"$namespace"'
    return [
        {
            "refId": chr(ord("A") + number), "datasource": DATASOURCE, "legendFormat": legend or "__auto",
            "expr": query.replace("OURS", selector).replace("RATE", "$__rate_interval"),
            "format": "heatmap" if panel.kind == "heatmap" else "time_series",
        }
        for number, (legend, query) in enumerate(panel.queries.items())
    ]  # fmt: skip


def picture(panel: Panel) -> dict[str, Any]:
    """A panel as Grafana stores it, without its place."""
    defaults: dict[str, Any] = {"unit": panel.unit}
    found: dict[str, Any] = {
        "type": panel.kind, "title": panel.title, "description": panel.text, "datasource": DATASOURCE,
        "targets": targets(panel), "fieldConfig": {"defaults": defaults, "overrides": []},
    }  # fmt: skip
    if panel.thresholds:
        steps = [{"value": value or None, "color": color} for value, color in panel.thresholds.items()]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    if panel.kind == "stat":
        found["options"] = {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area"}
    elif panel.kind == "heatmap":
        found["options"] = {"calculate": False, "yAxis": {"unit": panel.unit}, "color": {"scheme": "Blues"}}
    else:
        scale = {"type": "log", "log": 10} if panel.log else {"type": "linear"}
        stacking = {"mode": "normal" if panel.stack else "none"}
        fill = 30 if panel.stack else 5
        defaults["custom"] = {"stacking": stacking, "fillOpacity": fill, "scaleDistribution": scale}
        found["options"] = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
    return found


def dashboard() -> str:
    """All of it, as JSON that Grafana imports."""
    panels: list[dict[str, Any]] = []
    x = y = height = 0
    for title, row in ROWS.items():
        y, x, height = y + height, 0, 0
        panels.append(
            {"type": "row", "title": title, "collapsed": False, "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}}
        )
        y += 1
        for panel in row:
            if x + panel.width > WIDTH:
                y, x, height = y + height, 0, 0
            place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            panels.append({**picture(panel), "gridPos": place})
            x, height = x + panel.width, max(height, panel.height)
    for number, found in enumerate(panels):
        found["id"] = number + 1
    window = {
        "name": "window", "label": "quality over", "type": "interval", "query": "5m,30m,1h,6h,1d", "refresh": 2,
        "current": {"text": "1h", "value": "1h"},
    }  # fmt: skip
    datasource = {"name": "datasource", "label": "data", "type": "datasource", "query": "prometheus"}
    found = {
        "uid": "stream-worker", "title": "stream-worker", "tags": ["stream-worker"], "schemaVersion": 39, "version": 1,
        "editable": True, "graphTooltip": 1, "refresh": "10s", "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser", "annotations": {"list": []}, "panels": panels,
        "templating": {"list": [datasource, variable("namespace", "namespace"), variable("job", "job"), window]},
    }  # fmt: skip
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """Write, or compare."""
    wanted = dashboard()
    if TARGET.exists() and TARGET.read_text() == wanted:
        return 0
    if "--check" in sys.argv:
        sys.stderr.write("dashboard.json is not what the code makes; run .venv/bin/python scripts/dashboard.py\n")
        return 1
    TARGET.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
