"""A real Prometheus scrapes a live worker, and answers what an operator asks."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from demo.broker import Broker
from tests.worker.monitoring import Prometheus
from tests.worker.process import Stage, WorkerProcess, wait_for
from tests.worker.test_worker import some_events


@pytest.fixture
def scraped(
    broker: Broker, models: dict[str, Path], tmp_path: Path, unique: Callable[[str], str], seed: int
) -> Iterator[tuple[WorkerProcess, Prometheus]]:
    """A worker that has served a thousand events, and its Prometheus."""
    with Stage(broker, models["sasrec"], tmp_path, unique) as stage:
        worker = stage.worker()
        prometheus = Prometheus(tmp_path, [worker.port])
        try:
            wait_for("a first scrape", lambda: prometheus.query('up{job="stream-worker"} == 1'))
            stage.send(some_events(seed, 1000))
            wait_for("all lists", stage.covered)
            yield worker, prometheus
        finally:
            prometheus.close()


def test_promql_answers_how_old_lists_are_and_where_the_time_goes(scraped: tuple[WorkerProcess, Prometheus]) -> None:
    worker, prometheus = scraped
    lists = worker.metric("lists_total")

    def counted() -> bool:
        found = prometheus.query("sum(stream_worker_event_to_list_seconds_count)")
        return found.get("{}") == lists

    wait_for("the last scrape", counted)
    now = time.time()

    def quantile(name: str, by: str) -> dict[str, float]:
        return prometheus.query(f"histogram_quantile(0.99, sum by ({by}) (stream_worker_{name}_bucket))")

    p99 = quantile("event_to_list_seconds", "le")["{}"]
    assert 0 < p99 < 60
    stages = {json.loads(labels)["stage"] for labels, p in quantile("stage_seconds", "le, stage").items() if p > 0}
    assert stages == {"poll", "decode", "fold", "batch", "infer", "encode", "publish", "checkpoint"}
    assert prometheus.query("sum(stream_worker_events_total)")["{}"] == 1000
    (info,) = prometheus.query("stream_worker_model_info")
    assert json.loads(info)["device"] == "cpu"
    assert abs(prometheus.query("stream_worker_last_step_timestamp_seconds").popitem()[1] - now) < 30
    series = prometheus.query('count({job="stream-worker"})')["{}"]
    assert series < 500


def test_no_user_and_no_item_is_a_label(scraped: tuple[WorkerProcess, Prometheus]) -> None:
    worker, _ = scraped
    text = worker.get("/metrics")[1]
    assert '"u1' not in text
    assert '"i1' not in text
    assert "u1" not in worker.log.read_text()
