"""Which list is the first to cover which event: latencies, and the proof that no list is missing. Pure."""

from collections import defaultdict, deque
from collections.abc import Iterable
from typing import NamedTuple


class Seen(NamedTuple):
    """An event as it lies on its topic; `at_ms` is the broker's time (LogAppendTime)."""

    user: bytes
    offset: int
    at_ms: int


class Listed(NamedTuple):
    """A list as it lies on its topic: of `user`, covering events up to `offset`; `at_ms` as above."""

    user: bytes
    offset: int
    at_ms: int


class Sample(NamedTuple):
    """A list that is the first to cover some event: the oldest such event's time, and how long that waited."""

    event_at_ms: int
    waited_ms: int


class Coverage:
    """The events that no list covers yet."""

    def __init__(self) -> None:
        self._uncovered: dict[bytes, deque[Seen]] = defaultdict(deque)

    def add_events(self, events: Iterable[Seen]) -> None:
        """Events in the order of the log."""
        for event in events:
            self._uncovered[event.user].append(event)

    def add_lists(self, lists: Iterable[Listed]) -> list[Sample]:
        """Lists in the order of their log: a sample of each that covers something new."""
        samples = []
        for user, offset, at_ms in lists:
            waiting = self._uncovered.get(user)
            if not waiting or waiting[0].offset > offset:
                continue  # a repeat, which at-least-once allows
            samples.append(Sample(waiting[0].at_ms, at_ms - waiting[0].at_ms))
            while waiting and waiting[0].offset <= offset:
                waiting.popleft()
            if not waiting:
                del self._uncovered[user]
        return samples

    @property
    def missing(self) -> list[bytes]:
        """Users whose last event no list covers."""
        return list(self._uncovered)
