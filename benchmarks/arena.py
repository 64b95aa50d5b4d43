"""One broker, one events topic, and contenders that read it in turns: while one is measured the others stand still."""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from benchmarks.contenders import EVENTS, REJECTED, Contender, Place
from benchmarks.coverage import Coverage, Sample
from benchmarks.errors import BenchmarkError
from benchmarks.load import Load, Producer
from benchmarks.topics import Admin, Tail

CHECK_EVERY_S = 0.25  # of the committed position
SAMPLE_EVERY_S = 0.02  # of CPU time
IN_HAND_TIMEOUT_S = 10  # from the commit of the last event to its list being readable
BUSY_TIMEOUT_S = 300


class Turn(NamedTuple):
    """What a contender did in its turn.

    Attributes:
        events, lists: how many; `list_bytes` of all values together.
        seconds: from the start to its last list's arrival at the broker.
        cpu_s: of the process, in that time.
        samples: of `Coverage`, those of the warm-up left out.
        stages_s: seconds by stage.
        rss_mib: resident memory at its end.
    """

    events: int
    lists: int
    list_bytes: int
    seconds: float
    cpu_s: float
    samples: list[Sample]
    stages_s: dict[str, float]
    rss_mib: float


class Entrant:
    """A contender in the arena."""

    def __init__(self, contender: Contender, bootstrap: str) -> None:
        self.contender = contender
        self.tail = Tail(bootstrap, contender.topic)
        self.coverage = Coverage()
        self.stages_s: dict[str, float] = {}


class Arena:
    """Events in, turns out.

    Args:
        place: where.
        load: what is produced.
    """

    def __init__(self, place: Place, load: Load) -> None:
        self._place = place
        self._load = load
        self._entrants: list[Entrant] = []
        self._admin = Admin(place.bootstrap)
        self._events_topic = place.topic(EVENTS)
        self._admin.create([self._events_topic, place.topic(REJECTED)])
        self._producer = Producer(place.bootstrap, self._events_topic)
        self._events = Tail(place.bootstrap, self._events_topic)

    def fill(self, events_each: int) -> int:
        """Histories, before anybody enters; returns how many events."""
        count = self._producer.produce(self._load.fill(events_each))
        self._events.skip()
        return count

    def enter(self, contender: Contender) -> Entrant:
        """Start a contender, and stop it still once it is ready."""
        self._admin.create([contender.topic])
        entrant = Entrant(contender, self._place.bootstrap)
        self._entrants.append(entrant)
        contender.start()
        entrant.stages_s = contender.stages_s()
        contender.pause()
        return entrant

    def backlog(self, count: int, order: Sequence[Entrant]) -> dict[str, Turn]:
        """Produce while all stand still; then each drains it at full speed, one after the other."""
        self._produce(count)
        return {entrant.contender.name: self._turn(entrant, count) for entrant in order}

    def paced(self, rate: float, seconds: float, warm_up_s: float, order: Sequence[Entrant]) -> dict[str, Turn]:
        """Each in turn gets events one by one at `rate` a second; what the others missed they drain unmeasured."""
        turns = {}
        for entrant in order:
            messages = self._load.draw(int(rate * (seconds + warm_up_s)))
            start, before_s = time.time(), entrant.contender.cpu_s()
            entrant.contender.resume()
            self._producer.pace(messages, rate)
            self._note_events()
            turn = self._turn(entrant, len(messages), start, before_s)
            measured = [sample for sample in turn.samples if sample.event_at_ms >= (start + warm_up_s) * 1000]
            turns[entrant.contender.name] = turn._replace(samples=measured)
            for other in order:
                if other is not entrant:
                    self._turn(other, len(messages))
        return turns

    def close(self, in_order: bool) -> None:
        """End all contenders, and check how they end if `in_order`."""
        try:
            for entrant in self._entrants:
                if in_order:
                    entrant.contender.stop()
        finally:
            for entrant in self._entrants:
                entrant.contender.kill()
                entrant.tail.close()
            self._events.close()
            self._producer.close()
            topics = [self._events_topic, self._place.topic(REJECTED)]
            self._admin.delete([*topics, *(entrant.contender.topic for entrant in self._entrants)])
            self._admin.close()

    def _produce(self, count: int) -> None:
        self._producer.produce(self._load.draw(count))
        self._note_events()

    def _note_events(self) -> None:
        events = self._events.events()
        for entrant in self._entrants:
            entrant.coverage.add_events(events)

    def _turn(self, entrant: Entrant, count: int, start: float | None = None, before_s: float | None = None) -> Turn:
        """Let it run until it has committed all events and listed all users; then stop it still."""
        contender = entrant.contender
        before_s = contender.cpu_s() if before_s is None else before_s
        start = time.time() if start is None else start
        contender.resume()
        cpu = list(self._watch(contender))
        samples, lists, size, last_ms = self._lists(entrant)
        stages_s, entrant_before = contender.stages_s(), entrant.stages_s
        contender.pause()
        entrant.stages_s = stages_s
        # CPU up to the last list, not to the commit that follows within a second.
        after_s = next((used for at, used in cpu if at * 1000 >= last_ms), cpu[-1][1])
        return Turn(
            events=count,
            lists=lists,
            list_bytes=size,
            seconds=last_ms / 1000 - start,
            cpu_s=after_s - before_s,
            samples=samples,
            stages_s={name: value - entrant_before.get(name, 0.0) for name, value in stages_s.items()},
            rss_mib=contender.rss_mib(),
        )

    def _watch(self, contender: Contender) -> Iterator[tuple[float, float]]:
        """Wall and CPU time, until all events are committed."""
        end, deadline, check_at = self._events.end(), time.monotonic() + BUSY_TIMEOUT_S, 0.0
        while True:
            yield time.time(), contender.cpu_s()
            now = time.monotonic()
            if now >= check_at:
                if self._admin.committed(contender.topic, self._events_topic) >= end:
                    return
                check_at = time.monotonic() + CHECK_EVERY_S
            if now > deadline:
                raise BenchmarkError(f"{contender.name} had not committed all events after {BUSY_TIMEOUT_S} s")
            time.sleep(SAMPLE_EVERY_S)

    def _lists(self, entrant: Entrant) -> tuple[list[Sample], int, int, int]:
        """Samples, lists, their bytes, and when the last of them came, epoch ms."""
        samples: list[Sample] = []
        lists = size = last_ms = 0
        deadline = time.monotonic() + IN_HAND_TIMEOUT_S
        while True:
            listed, list_bytes = entrant.tail.lists()
            samples += entrant.coverage.add_lists(listed)
            lists, size = lists + len(listed), size + list_bytes
            last_ms = max(last_ms, *(one.at_ms for one in listed)) if listed else last_ms
            missing = entrant.coverage.missing
            if not missing:
                return samples, lists, size, last_ms
            if time.monotonic() > deadline:
                raise BenchmarkError(
                    f"{entrant.contender.name} committed all events, but {len(missing)} users have no list that "
                    f"covers their last one, such as {missing[0].decode()!r}"
                )
            time.sleep(0.05)
