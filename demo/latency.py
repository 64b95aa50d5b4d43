"""How long an event waits for its list, as an application sees it: from sending the one to reading the other.

Both ends are in this process and on its clock, so clients, broker and worker are all in the figure. A list that
covers several new events of its user counts once, with the oldest of them, as the workers' own metric does.
"""

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence

from stream_worker.messages import TopK


class Ledger:
    """Which events wait for a list; the sender's and the reader's thread share it. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent: defaultdict[str, list[float]] = defaultdict(list)
        self._covered: defaultdict[str, int] = defaultdict(int)  # how many of these a list has answered
        self._newest: dict[str, TopK] = {}
        self._fresh: list[float] = []  # waits since the last `take`
        self.events = 0
        self.lists = 0
        self.waiting = 0
        self.waits: list[float] = []  # all that were taken

    def sent(self, user: str, now: float) -> None:
        """An event is about to be sent."""
        with self._lock:
            self._sent[user].append(now)
            self.events += 1
            self.waiting += 1

    def read(self, found: TopK, now: float) -> None:
        """A list was read. Its `events` tells which of its user's events it covers: the first so many."""
        with self._lock:
            self.lists += 1
            self._newest[found.user] = found
            sent, before = self._sent[found.user], self._covered[found.user]
            # More than we sent: somebody typed an event by hand.
            covered = min(found.events, len(sent))
            if covered > before:
                self._fresh.append(now - sent[before])
                self._covered[found.user] = covered
                self.waiting -= covered - before

    def take(self) -> list[float]:
        """The waits since the last call."""
        with self._lock:
            fresh, self._fresh = self._fresh, []
        self.waits += fresh
        return fresh

    @property
    def users(self) -> int:
        """Users with a list so far."""
        return len(self._newest)

    def example(self) -> TopK | None:
        """The newest list of the user with most events."""
        with self._lock:
            return max(self._newest.values(), key=lambda found: found.events, default=None)


def quantile(values: Sequence[float], q: float) -> float | None:
    """The smallest value that a share `q` of them does not exceed; None of none."""
    if not values:
        return None
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def bucket_quantile(buckets: Mapping[float, float], q: float) -> float | None:
    """The quantile of a Prometheus histogram, as PromQL's histogram_quantile: linear within the bucket.

    Args:
        buckets: upper edge -> cumulative count; the last edge is infinite.
        q: 0 to 1.

    Returns:
        None of an empty histogram; the largest finite edge if the quantile lies above it.
    """
    edges = sorted(buckets)
    counts = [buckets[edge] for edge in edges]
    if not counts or not counts[-1]:
        return None
    wanted = q * counts[-1]
    place = bisect_left(counts, wanted)
    if place == len(edges) - 1:
        return edges[-2] if len(edges) > 1 else None
    low, below = (edges[place - 1], counts[place - 1]) if place else (0.0, 0.0)
    inside = counts[place] - below
    return low + (edges[place] - low) * ((wanted - below) / inside if inside else 1.0)
