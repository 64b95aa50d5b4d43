"""Fill a new state topic before any worker runs on it: from the warehouse's events, or from another state topic.

What is seeded stands as if it had come before the first event that the workers will read: if that has the offset p, the
last event before it has p - 1, then p - 2, and so on, below zero if need be. So a worker goes on as after a restart:
nothing is folded twice, and those who have been silent for longest are evicted first.

The positions come last, in one transaction. A state topic without them is of a seed that was interrupted, and workers
refuse it.
"""

import resource
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from stream_worker import changelog
from stream_worker.changelog import POSITION_KEY, Position, decode_position, encode_position, moved, offsets
from stream_worker.errors import DataError, SettingsError
from stream_worker.events import Events
from stream_worker.fold import Fold
from stream_worker.messages import FORGET, item_hash
from stream_worker.settings import SeedSettings
from stream_worker.state import Actions, Copy, Partition
from stream_worker.topics import inspect, partition_of
from stream_worker.transports.base import Change
from stream_worker.transports.kafka_offline import KafkaOffline, StateWriter

if TYPE_CHECKING:
    from stream_worker.warehouse import Warehouse

USERS_PER_TRANSACTION = 5000
FIRST_TAIL = 100  # records from the end in which a position is looked for first


@dataclass(frozen=True)
class Target:
    """Where it goes: the events topic, and by partition the offset at which its workers will begin."""

    topic_id: str
    begin: Mapping[int, int]

    def position(self, settings: SeedSettings, number: int, newest: int, epoch: int) -> Change:
        """The position record of a partition."""
        position = Position(
            next_offset=self.begin[number],
            folded_offset=self.begin[number],
            newest=newest,
            topic_id=self.topic_id,
            partitions=len(self.begin),
            history_length=settings.history_length,
            excluded_length=settings.excluded_length,
            epoch=epoch,
        )
        return Change(number, POSITION_KEY, encode_position(position))


def prepare(settings: SeedSettings, kafka: KafkaOffline) -> Target:
    """Look whether the topics are ready to be seeded.

    Raises:
        DataError: the state topic is not empty, workers run, or `--until` does not fit the events topic.
    """
    report = inspect(settings)
    state, events = settings.state_topic, settings.events_topic
    starts, ends = kafka.starts(state), kafka.ends(state)
    if starts != ends:
        raise DataError(
            f"topic {state!r} is not empty. Name a new --state-topic, or delete this one and make it anew with "
            "`stream-worker topics --create`; so, too, after a seed that was interrupted."
        )
    if members := kafka.members():
        raise DataError(f"group {settings.group!r} has workers ({members}). Stop them: they would write over the seed.")
    starts, ends = kafka.starts(events), kafka.ends(events)
    begin = settings.until_offsets or starts
    wrong = [number for number in starts if not starts[number] <= begin.get(number, -1) <= ends[number]]
    if wrong or len(begin) > len(starts):
        retained = ", ".join(f"{number}:{starts[number]} to {ends[number]}" for number in starts)
        raise DataError(
            f"--until {settings.until}: name an offset for each partition of {events!r}, within {retained}."
        )
    return Target(report.topic_id, begin)


# -- from files ------------------------------------------------------------------------------------------------------


def seed_events(settings: SeedSettings, kafka: KafkaOffline) -> Iterator[str]:
    """Fold the files' events into the state topic. Yields what was done, line by line.

    Raises:
        SettingsError: polars is not installed.
        DataError: the topics are not ready, or a file is not as required.
    """
    try:
        from stream_worker.warehouse import Fields, Warehouse
    except ImportError as error:
        raise SettingsError(
            f"--events needs polars, which a worker does not ({error}): it comes with the extra `seed`."
        ) from error
    s, start = settings, time.monotonic()
    target = prepare(s, kafka)
    partitions = len(target.begin)
    with TemporaryDirectory(prefix="stream-worker-seed-", dir=s.spill_directory) as spill:
        warehouse = Warehouse(
            s.events,
            Fields(s.event_user_field, s.event_item_field, s.event_action_field, s.event_time_field),
            lambda user: partition_of(user.encode(), partitions),
            int((time.time() + s.max_future_s) * 1000),
            Path(spill),
        )
        warehouse.load()
        count = len(warehouse.files)
        yield f"{warehouse.read:,} rows of {count} file{'' if count == 1 else 's'} read"
        for reason, count in warehouse.dropped.most_common():
            yield f"  {count:,} dropped: {reason}"
        seeded = 0
        positions = []
        with StateWriter(s) as writer:
            for number in range(partitions):
                users, newest, outcomes = _seed_partition(s, warehouse, number, target.begin[number], writer)
                positions.append(target.position(s, number, newest, s.epoch or 0))
                seeded += users
                yield f"partition {number}: {users:,} users, {_counts(outcomes)}"
            writer.write(positions)
    yield _summary(s, seeded, target, start)


def _seed_partition(
    settings: SeedSettings, warehouse: "Warehouse", number: int, begin: int, writer: StateWriter
) -> tuple[int, int, Counter[str]]:
    """Fold one partition and write its users: how many, the highest timestamp, and what became of the events."""
    state, actions, outcomes = _fold(settings, warehouse, number, begin)
    for copy in _copies(state, owed=settings.lists):
        writer.write(changelog.changes(number, copy, actions))
    return len(state), state.newest, outcomes


def _fold(
    settings: SeedSettings, warehouse: "Warehouse", number: int, begin: int
) -> tuple[Partition, Actions, Counter[str]]:
    """One partition's events, as a worker would fold them: an event's own time stands for its Kafka timestamp."""
    s = settings
    ttl_ms = None if s.user_ttl_s is None else int(s.user_ttl_s * 1000)
    state = Partition(number, s.history_length, s.excluded_length, 1, s.max_users_per_partition, ttl_ms)
    actions, outcomes = Actions(s.excluding), Counter[str]()
    offset = begin - warehouse.count(number)

    def fold(events: Events) -> Events:
        _, outcomes_E = state.fold(events, actions.excluding)
        assert not (outcomes_E == Fold.REPLAYED).any(), "every row has an offset of its own"
        repeats = int((outcomes_E == Fold.DUPLICATE).sum())
        outcomes.update({"repeats": repeats, "events": len(events) - repeats, "users evicted": len(state.evicted)})
        state.evicted.clear()
        return Events()

    for window in warehouse.events(number):
        events = Events()
        for user, item, action, time_ms in zip(*window, strict=True):
            if state.expiry_due(time_ms):
                events = fold(events)
                outcomes["users expired"] += len(state.expire(time_ms))
                state.leaving.clear()
            elif time_ms > state.newest:
                state.newest = time_ms
            if item is None or action == FORGET:
                events = fold(events)
                state.forget(user)
                outcomes["forgotten"] += 1
            else:
                events.add(user, item_hash(item), time_ms // 1000, actions.code(action), offset, time_ms)
            offset += 1
        fold(events)
    return state, actions, outcomes


def _copies(state: Partition, owed: bool) -> Iterator[Copy]:
    """All users, some at a time."""
    rows = np.array([row for row, user in enumerate(state.users) if user is not None], np.intp)
    for start in range(0, len(rows), USERS_PER_TRANSACTION):
        rows_B = rows[start : start + USERS_PER_TRANSACTION]
        applied_B = state.applied_offset[rows_B]
        yield Copy(
            [user for row in rows_B.tolist() if (user := state.users[row]) is not None],
            state.gather(rows_B),
            state.events[rows_B],
            applied_B,
            applied_B - owed,
            state.timestamp[rows_B],
            [],
        )


# -- from another state topic ----------------------------------------------------------------------------------------


def seed_topic(settings: SeedSettings, kafka: KafkaOffline) -> Iterator[str]:
    """Take the users of another state topic over, into the partitions of this events topic. Yields what was done.

    Raises:
        DataError: the topics are not ready, or the other one's workers have not folded all of their events.
    """
    start = time.monotonic()
    assert settings.from_topic is not None
    target = prepare(settings, kafka)
    old = Old(settings, kafka, settings.from_topic)
    old.check(target)
    yield from old.lines
    epoch = old.epoch + 1 if settings.epoch is None else settings.epoch
    if epoch <= old.epoch:
        raise SettingsError(f"--epoch {epoch}: {old.topic!r} has {old.epoch}; readers prefer the larger. Take more.")
    users: Counter[int] = Counter()
    with StateWriter(settings) as writer:
        for number in old.positions:
            taken = _counted(old.users(number, target, settings.lists), users)
            while chunk := list(islice(taken, USERS_PER_TRANSACTION)):
                writer.write(chunk)
            yield f"{old.topic}-{number}: read to its end"
        writer.write(target.position(settings, number, old.newest, epoch) for number in target.begin)
    for number in target.begin:
        full = users[number] > settings.max_users_per_partition
        note = ", above --max-users-per-partition: the longest silent go, ten with each new one" if full else ""
        yield f"partition {number}: {users[number]:,} users{note}"
    if old.strays:
        yield f"  {old.strays:,} left out: they lay where Kafka's default partitioner does not put them"
    yield _summary(settings, users.total(), target, start, f", epoch {epoch}")


class Old:
    """Another state topic.

    Args:
        settings, kafka: see there.
        topic: its name.
    """

    def __init__(self, settings: SeedSettings, kafka: KafkaOffline, topic: str) -> None:
        self._settings = settings
        self._kafka = kafka
        self.topic = topic
        self._starts, self._ends = kafka.starts(topic), kafka.ends(topic)
        self.positions: dict[int, Position] = {}
        self.lines: list[str] = []
        self.strays = 0
        if not self._ends:
            raise DataError(f"--from-topic {topic!r}: there is no such topic.")

    @property
    def epoch(self) -> int:
        """The highest of its partitions."""
        return max(position.epoch for position in self.positions.values())

    @property
    def newest(self) -> int:
        """The highest Kafka timestamp that it has folded, epoch ms."""
        return max(position.newest for position in self.positions.values())

    def check(self, target: Target) -> None:
        """Find the positions; see whether the state is whole, of another events topic, and has folded all of that.

        Raises:
            DataError: it is not so.
        """
        s = self._settings
        for number in self._ends:
            position = self._position(number)
            if position is None:
                raise DataError(
                    f"{self.topic}-{number}: has no position: no worker ever wrote there, or not all of it."
                )
            self.positions[number] = position
        first = self.positions[0]
        if first.topic_id == target.topic_id:
            raise DataError(
                f"--from-topic {self.topic!r}: was made from {s.events_topic!r} itself. Its users have their place "
                "already: start the workers with it. For more partitions make another events topic."
            )
        if first.history_length > s.history_length or first.excluded_length > s.excluded_length:
            raise DataError(
                f"--from-topic {self.topic!r}: was made with --history-length {first.history_length} --excluded-length "
                f"{first.excluded_length}: name these or more."
            )
        events = self._kafka.name_of(first.topic_id)
        if events is None:
            self.lines.append(f"{self.topic}: its events topic is gone, so nothing says whether all of it was folded")
            return
        ends = self._kafka.ends(events)
        spans = {number: (position.next_offset, ends[number]) for number, position in self.positions.items()}
        waiting = Counter(number for number, _ in self._kafka.read(events, spans))
        if waiting:
            places = ", ".join(f"{count:,} of partition {number}" for number, count in sorted(waiting.items()))
            raise DataError(
                f"--from-topic {self.topic!r}: of {events!r} are not folded: {places}. Let its workers run until their "
                "lag is 0, stop them, and try again."
            )
        self.lines.append(f"{self.topic}: all of {events} is folded")

    def users(self, number: int, target: Target, lists: bool) -> Iterator[Change]:
        """The users of one of its partitions, as records of their new ones.

        Their order by last event is kept within the partition; those of different partitions are interleaved.
        """
        newest: dict[bytes, bytes] = {}
        for _, record in self._kafka.read(self.topic, {number: (self._starts[number], self._ends[number])}):
            if record.key is None or record.key == POSITION_KEY:
                continue
            if record.value is None:
                newest.pop(record.key, None)
            else:
                newest[record.key] = record.value
        partitions = len(self._ends)
        strays = [key for key in newest if partition_of(key, partitions) != number]
        if len(strays) > len(newest) / 2:
            raise DataError(
                f"{self.topic}-{number}: {len(strays):,} of {len(newest):,} users lie where Kafka's default "
                "partitioner does not put them. Nobody can tell where their next events will: key the events by it."
            )
        self.strays += len(strays)
        for key in strays:
            del newest[key]
        by_age = sorted(newest, key=lambda key: -offsets(newest[key]).applied)
        for rank, key in enumerate(by_age):
            before = offsets(newest[key])
            to = partition_of(key, len(target.begin))
            applied = target.begin[to] - 1 - (rank * partitions + number)
            owed = lists and before.listed < before.applied
            yield Change(to, key, moved(newest[key], applied, applied - owed))

    def _position(self, number: int) -> Position | None:
        """The newest position record: usually the last but one, so look at the end, and further back if need be."""
        start, end, tail = self._starts[number], self._ends[number], FIRST_TAIL
        while True:
            begin = max(start, end - tail)
            found = [
                record.value
                for _, record in self._kafka.read(self.topic, {number: (begin, end)})
                if record.key == POSITION_KEY and record.value
            ]
            if found:
                return decode_position(found[-1])
            if begin == start:
                return None
            tail *= 100


def _counted(changes: Iterable[Change], users: Counter[int]) -> Iterator[Change]:
    for change in changes:
        users[change.partition] += 1
        yield change


def _counts(outcomes: Counter[str]) -> str:
    order = ("events", "repeats", "users evicted", "users expired", "forgotten")
    return ", ".join(f"{outcomes[name]:,} {name}" for name in order if outcomes[name] or name == "events")


def _summary(settings: SeedSettings, users: int, target: Target, start: float, note: str = "") -> str:
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    begin = ",".join(f"{number}:{offset}" for number, offset in sorted(target.begin.items()))
    return (
        f"{settings.state_topic}: {users:,} users{note}; workers begin at {begin}. "
        f"{time.monotonic() - start:.1f} s, {megabytes:,} MB at most"
    )
