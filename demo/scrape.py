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
    """The newest samples of each worker; one that has gone keeps its last ones, so that no sum goes backwards."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._ports = ports
        self._samples: dict[int, Samples] = {}

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
        return [
            (labels, value)
            for samples in self._samples.values()
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
