"""What happens to the workers, in sentences."""

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence


class Notices:
    """Follows who holds which partition. Times are seconds of one clock; any thread may tell."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders: dict[int, int] = {}  # partition -> worker: the last one, where there is none now
        self._lost_at: dict[int, float] = {}  # partition -> when its worker was killed; while it has no other

    def killed(self, number: int, now: float) -> str:
        """A worker was killed."""
        with self._lock:
            lost = sorted(partition for partition, holder in self._holders.items() if holder == number)
            self._lost_at |= dict.fromkeys(lost, now)
        kept = f" Clicks of {partitions(lost)} are kept in Kafka meanwhile." if lost else ""
        return f"Worker {number} killed with kill -9.{kept}"

    def look(self, holdings: Mapping[int, Sequence[int]], now: float) -> list[str]:
        """What has changed since the last look, by the partitions of each worker that runs."""
        taken: defaultdict[int, list[int]] = defaultdict(list)
        lost_at: dict[int, float] = {}  # worker -> when the first of what it has taken was lost
        with self._lock:
            first = not self._holders
            for number, held in holdings.items():
                for partition in held:
                    if self._holders.get(partition) == number and partition not in self._lost_at:
                        continue
                    self._holders[partition] = number
                    taken[number].append(partition)
                    if partition in self._lost_at:
                        lost_at[number] = min(lost_at.get(number, now), self._lost_at.pop(partition))
        if first:
            return []
        return [_taken(number, taken[number], lost_at.get(number), now) for number in sorted(taken)]


def partitions(numbers: Sequence[int]) -> str:
    """Some partitions, in words."""
    *others, last = map(str, numbers)
    return f"partitions {', '.join(others)} and {last}" if others else f"partition {last}"


def _taken(number: int, taken: Sequence[int], lost_at: float | None, now: float) -> str:
    sentence = f"Worker {number} has taken {partitions(sorted(taken))}"
    if lost_at is None:
        return f"{sentence}."
    return f"{sentence}, {now - lost_at:.0f} s after the kill. What was clicked meanwhile gets its lists."
