"""What the workers say of themselves on /metrics, summed over them."""

import math
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from stream_worker.metrics import PREFIX

TIMEOUT_S = 2.0

Samples = list[tuple[str, dict[str, str], float]]


@dataclass(frozen=True)
class Quality:
    """Live quality of one kind of list: events judged, and those whose item was among the first ten."""

    judged: int
    hits: int

    @property
    def hit_rate(self) -> float | None:
        """HR@10; None before the first event is judged."""
        return self.hits / self.judged if self.judged else None


class Workers:
    """The newest samples of each worker. What one has counted before its end still counts: no sum goes backwards."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._ports = ports
        self._samples: dict[int, Samples] = {}
        self._past: list[Samples] = []  # of lives that have ended

    def scrape(self) -> None:
        """Ask each worker."""
        for port in self._ports:
            try:
                text = _get(port, "/metrics")[1]
            except OSError:
                continue
            self._samples[port] = [
                (sample.name, sample.labels, sample.value)
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            ]

    def retire(self, port: int) -> None:
        """The worker there has ended, and another takes its place; its counters begin at 0."""
        if port in self._samples:
            self._past.append(self._samples.pop(port))

    def gauges(self, port: int, name: str) -> list[tuple[dict[str, str], float]]:
        """The labels and values of one worker's gauge, as it said last; none before it has answered."""
        return _selected(self._samples.get(port, []), name, {})

    def total(self, name: str, **labels: str) -> int:
        """The sum of a counter over workers and all labels but these."""
        return int(sum(value for _, value in self._select(f"{name}_total", labels)))

    def buckets(self, name: str) -> dict[float, float]:
        """A histogram: upper edge to cumulative count."""
        buckets: defaultdict[float, float] = defaultdict(float)
        for labels, value in self._select(f"{name}_bucket", {}):
            edge = labels["le"]
            buckets[math.inf if edge == "+Inf" else float(edge)] += value
        return dict(buckets)

    def quality(self, which: str) -> Quality:
        """Of users' `own` lists, or of the `default` list for users without one."""
        return Quality(self.total("judged", list=which), self.total("hits", list=which, k="10"))

    def _select(self, name: str, wanted: dict[str, str]) -> list[tuple[dict[str, str], float]]:
        return [one for samples in (*self._past, *self._samples.values()) for one in _selected(samples, name, wanted)]


def _selected(samples: Samples, name: str, wanted: dict[str, str]) -> list[tuple[dict[str, str], float]]:
    return [
        (labels, value)
        for found, labels, value in samples
        if found == f"{PREFIX}_{name}" and wanted.items() <= labels.items()
    ]


def not_ready(port: int) -> str | None:
    """None if /readyz says yes, else what it says."""
    try:
        status, text = _get(port, "/readyz")
    except OSError:
        return "does not answer yet"
    return None if status == 200 else text.strip()


def _get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=TIMEOUT_S) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
