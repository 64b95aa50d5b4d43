"""One broker, one events topic, and contenders that read it in turns: while one is measured the others stand still."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from benchmarks import states
from benchmarks.contenders import BUSY_TIMEOUT_S, CHECKPOINTS, DEFAULT_INTERVAL_S, EVENTS, REJECTED, Contender, Place
from benchmarks.coverage import Coverage, Sample
from benchmarks.errors import BenchmarkError
from benchmarks.load import Load, Message, Producer
from benchmarks.topics import COMPACTED, Admin, Tail
from stream_worker.metrics import STAGES
from stream_worker.state import Copy

CHECK_EVERY_S = 0.1  # of whether it still writes
SAMPLE_EVERY_S = 0.02  # of CPU time


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    users: int = 20_000
    fill_each: int = 50
    warm_up: int = 20_000
    backlog: int = 60_000
    rates: tuple[float, ...] = (500,)
    paced_s: float = 15
    paced_warm_up_s: float = 1
    repeats: int = 3
    checkpoint_interval_s: float = DEFAULT_INTERVAL_S


class Turn(NamedTuple):
    """What a contender did in its turn.

    Attributes:
        events, lists: how many; `list_bytes` of all values together.
        seconds: from the start to its last list's arrival at the broker.
        cpu_s: of the process, in that time.
        samples: of `Coverage`, those of the warm-up left out.
        stages_s: seconds by stage.
        checkpoints: how many, of so many `states` together, in `checkpoints_s`.
        rss_mib: resident memory at its end.
    """

    events: int
    lists: int
    list_bytes: int
    seconds: float
    cpu_s: float
    samples: list[Sample]
    stages_s: dict[str, float]
    checkpoints: int
    checkpoints_s: float
    states: int
    rss_mib: float


Turns = dict[str, dict[str, list[Turn]]]  # BACKLOG or paced(rate) -> contender -> one a repeat
BACKLOG = "backlog"


def paced(rate: float) -> str:
    """The phase at that many events a second."""
    return f"paced {rate:g}"


class Entrant:
    """A contender in the arena."""

    def __init__(self, contender: Contender, bootstrap: str) -> None:
        self.contender = contender
        self.tail = Tail(bootstrap, contender.topic)
        self.state = None if contender.state_topic is None else Tail(bootstrap, contender.state_topic)
        self.coverage = Coverage()
        self.totals: dict[str, float] = {}

    def written(self) -> tuple[int, int]:
        """How far its topics are."""
        return self.tail.end(), 0 if self.state is None else self.state.end()

    def close(self) -> None:
        """At once."""
        self.contender.kill()
        self.tail.close()
        if self.state is not None:
            self.state.close()


class Arena:
    """Events in, turns out. Used by `with`, which ends all contenders.

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
        self._histories: Iterable[Copy] = []

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        """End all contenders, and check how they end if all went well so far."""
        try:
            for entrant in self._entrants:
                if kind is None:
                    entrant.contender.stop()
        finally:
            topics = [self._events_topic, self._place.topic(REJECTED)]
            for entrant in self._entrants:
                entrant.close()
                contender = entrant.contender
                topics += [contender.topic, *contender.own_topics]
                if contender.state_topic is not None:
                    topics.append(contender.state_topic)
            self._events.close()
            self._producer.close()
            self._admin.delete(topics)
            self._admin.close()

    def begin_with(self, histories: Iterable[Copy]) -> None:
        """States that the next contender to enter begins with; they are read once."""
        self._histories = histories

    def fill(self, users: int, events_each: int, as_events: bool = False, as_imports: bool = False) -> None:
        """Histories, before anybody enters.

        Args:
            as_events: also on the events topic, for a worker that keeps no states.
            as_imports: also on the events topic, one record for each user, for peers.
        """
        histories = list(self._load.states(np.full(users, events_each, np.int32)))
        self.begin_with(histories)
        if as_events:
            for part in histories:
                self._producer.produce(self._load.events_of(part))
        if as_imports:
            for part in histories:
                self._producer.produce(self._load.imports_of(part))
        self._events.skip()

    def enter(self, contender: Contender, history_length: int = states.HISTORY_LENGTH) -> Entrant:
        """Start a contender, which keeps histories so long, on the histories, and stop it still once it is ready."""
        self._admin.create([contender.topic])
        if contender.state_topic is not None:
            self._admin.create([contender.state_topic], COMPACTED)
            topic_id, end = self._admin.topic_id(self._events_topic), self._events.end()
            states.write(
                self._place.bootstrap, contender.state_topic, self._histories, self._load.actions, topic_id, end,
                history_length,
            )  # fmt: skip
        entrant = Entrant(contender, self._place.bootstrap)
        self._entrants.append(entrant)
        contender.start()
        entrant.totals = contender.totals()
        contender.pause()
        return entrant

    def compete(self, entrants: Sequence[Entrant], size: Size, say: Callable[[str], None]) -> Turns:
        """All of them at the same backlogs and the same steady rate, in turns whose order alternates."""
        self.backlog(size.warm_up, entrants)
        phases = (BACKLOG, *map(paced, size.rates))
        turns: Turns = {phase: {entrant.contender.name: [] for entrant in entrants} for phase in phases}
        for repeat in range(size.repeats):
            say(f"repeat {repeat + 1} of {size.repeats}")
            order = entrants if repeat % 2 == 0 else entrants[::-1]
            for name, turn in self.backlog(size.backlog, order).items():
                turns[BACKLOG][name].append(turn)
            for rate in size.rates:
                for name, turn in self.paced(rate, size.paced_s, size.paced_warm_up_s, order).items():
                    turns[paced(rate)][name].append(turn)
        return turns

    def backlog(self, count: int, order: Sequence[Entrant]) -> dict[str, Turn]:
        """Produce while all stand still; then each drains it at full speed, one after the other."""
        return self.drain(self._load.draw(count), order)

    def drain(self, messages: Sequence[Message], order: Sequence[Entrant]) -> dict[str, Turn]:
        """The same with these events."""
        self._producer.produce(messages)
        self._note_events()
        return {entrant.contender.name: self._turn(entrant, len(messages)) for entrant in order}

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

    def _note_events(self) -> None:
        events = self._events.events()
        for entrant in self._entrants:
            entrant.coverage.add_events(events)

    def _turn(self, entrant: Entrant, count: int, start: float | None = None, before_s: float | None = None) -> Turn:
        """Let it run until it has listed all users and committed what it may; then stop it still."""
        contender = entrant.contender
        before_s = contender.cpu_s() if before_s is None else before_s
        start = time.time() if start is None else start
        contender.resume()
        cpu: list[tuple[float, float]] = []
        samples: list[Sample] = []
        lists = size = last_ms = 0
        deadline = time.monotonic() + BUSY_TIMEOUT_S
        while (missing := entrant.coverage.missing) or not lists:
            if time.monotonic() > deadline:
                raise BenchmarkError(
                    f"{contender.name}: {len(missing)} users have no list that covers their last event after "
                    f"{BUSY_TIMEOUT_S} s, such as {missing[0].decode()!r}"
                )
            cpu += self._until_quiet(entrant, deadline)
            listed, list_bytes = entrant.tail.lists()
            samples += entrant.coverage.add_lists(listed)
            lists, size, last_ms = (
                lists + len(listed),
                size + list_bytes,
                max(last_ms, *(one.at_ms for one in listed), 0),
            )
        totals, before = contender.totals(), entrant.totals
        contender.pause()
        entrant.totals = totals
        spent = {name: value - before.get(name, 0.0) for name, value in totals.items()}
        checkpoints, checkpoints_s, states_written = (spent.get(name, 0.0) for name in CHECKPOINTS)
        # CPU up to the last list, not of standing by after it.
        after_s = next((used for at, used in cpu if at * 1000 >= last_ms), cpu[-1][1])
        return Turn(
            events=count,
            lists=lists,
            list_bytes=size,
            seconds=last_ms / 1000 - start,
            cpu_s=after_s - before_s,
            samples=samples,
            stages_s={name: value for name, value in spent.items() if name in STAGES},
            checkpoints=int(checkpoints),
            checkpoints_s=checkpoints_s,
            states=int(states_written),
            rss_mib=contender.rss_mib(),
        )

    def _until_quiet(self, entrant: Entrant, deadline: float) -> Iterator[tuple[float, float]]:
        """Wall and CPU time, until it has written nothing for as long as it may be silent between two commits."""
        contender = entrant.contender
        written, quiet_since, check_at = entrant.written(), time.monotonic(), 0.0
        while (now := time.monotonic()) - quiet_since < contender.quiet_s:
            yield time.time(), contender.cpu_s()
            if now >= check_at:
                before, written = written, entrant.written()
                quiet_since = now if written != before else quiet_since
                check_at = time.monotonic() + CHECK_EVERY_S
            if now > deadline:
                raise BenchmarkError(f"{contender.name} has not come to rest after {BUSY_TIMEOUT_S} s")
            time.sleep(SAMPLE_EVERY_S)
