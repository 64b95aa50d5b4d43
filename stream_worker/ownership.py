"""The partitions that are ours: taken, restored from the changelog, dropped; and whether they still are."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import structlog

from stream_worker.changelog import Loader, Position
from stream_worker.errors import DataError
from stream_worker.metrics import Metrics
from stream_worker.settings import Settings
from stream_worker.state import Actions, Partition
from stream_worker.transports.base import Assigned, Polled, Transport
from stream_worker.vectors import VectorCache

log = structlog.get_logger(__name__)


@dataclass(eq=False)
class Owned:
    """A partition that is ours: its users, and how far we are."""

    state: Partition
    assigned: Assigned
    loader: Loader | None  # while its changelog is being read
    assigned_at: float  # monotonic
    next_offset: int = -1  # after all records folded, skipped or rejected; -1 while restoring
    folded_offset: int = 0  # events before it are in the state, though they may be read again for other reasons
    written: int = -1  # the position on the changelog; -1 for none
    epoch: int = 0
    timestamp: int = 0  # Kafka timestamp of the last record, epoch ms
    catching_up: bool = False  # its records are old, and many are waiting

    @property
    def restoring(self) -> bool:
        """Whether its state is not complete yet."""
        return self.loader is not None


class Changed(NamedTuple):
    """What a poll changed: partitions that are no longer ours, and those whose state is complete now."""

    dropped: list[Owned]
    restored: list[Owned]


class Ownership(Mapping[int, Owned]):
    """The partitions that are ours, by number.

    Args:
        settings: see there.
        transport: open.
        metrics: restores and rebalances.
        actions: names of restored actions are interned there.
        list_length: K.
        vectors: what the model keeps of users, if it keeps anything.
    """

    def __init__(
        self,
        settings: Settings,
        transport: Transport,
        metrics: Metrics,
        actions: Actions,
        list_length: int,
        vectors: VectorCache | None = None,
    ) -> None:
        self._settings = settings
        self._transport = transport
        self._metrics = metrics
        self._actions = actions
        self._list_length = list_length
        self._vectors = vectors
        self._owned: dict[int, Owned] = {}

    def __getitem__(self, number: int) -> Owned:
        """The partition of that number."""
        return self._owned[number]

    def __iter__(self) -> Iterator[int]:
        """Their numbers."""
        return iter(self._owned)

    def __len__(self) -> int:
        """How many."""
        return len(self._owned)

    @property
    def restored(self) -> bool:
        """Whether the state of every partition is complete."""
        return not any(one.restoring for one in self._owned.values())

    def follow(self, polled: Polled) -> Changed:
        """Drop, take and restore what a poll says.

        Raises:
            DataError: the state does not fit the events topic or the settings; the message says what to do.
        """
        changed = Changed([], [])
        if polled.revoked or polled.assigned:
            self._metrics.rebalances.inc()
            gained = sorted(one.partition for one in polled.assigned)
            log.info("rebalance", revoked=sorted(polled.revoked), assigned=gained)
        for number in (*polled.revoked, *(one.partition for one in polled.assigned)):
            owned = self._owned.pop(number, None)
            if owned is not None:
                self._metrics.drop_partition(number)
                changed.dropped.append(owned)
        for assigned in polled.assigned:
            self._take(assigned)
        for number, records in polled.states.items():
            loader = self._owned[number].loader
            assert loader is not None, "states come before `restored`"
            loader.load(records)
        for number in polled.restored:
            self._begin(self._owned[number])
            changed.restored.append(self._owned[number])
        return changed

    def _take(self, assigned: Assigned) -> None:
        number, settings = assigned.partition, self._settings
        ttl_ms = None if settings.user_ttl_s is None else int(settings.user_ttl_s * 1000)
        state = Partition(
            number, settings.history_length, settings.excluded_length, self._list_length,
            settings.max_users_per_partition, ttl_ms, self._vectors,
        )  # fmt: skip
        loader = Loader(state, self._actions, f"{settings.state_topic}-{number}")
        self._owned[number] = Owned(state, assigned, loader, time.monotonic())
        self._metrics.restoring.labels(partition=number).set(1)

    def _begin(self, owned: Owned) -> None:
        """Its changelog has been read to the end: go on where it ends."""
        assert owned.loader is not None
        number, position = owned.state.number, owned.loader.position
        if position is None and len(owned.state):
            raise DataError(
                f"{self._settings.state_topic}-{number}: has users but no position: a seed was interrupted. "
                "Delete the topic, make it anew with `stream-worker topics --create`, and seed again."
            )
        owned.next_offset = self._first(owned.assigned) if position is None else self._next(owned.assigned, position)
        if position is not None:
            owned.written, owned.epoch = position.next_offset, position.epoch
            owned.folded_offset, owned.state.newest = position.folded_offset, position.newest
        owned.loader = None
        self._transport.seek(number, owned.next_offset)
        seconds = time.monotonic() - owned.assigned_at
        self._metrics.restoring.labels(partition=number).set(0)
        self._metrics.restore_seconds.observe(seconds)
        log.info(
            "restored", partition=number, users=len(owned.state), next_offset=owned.next_offset,
            seconds=round(seconds, 3),
        )  # fmt: skip

    def _first(self, assigned: Assigned) -> int:
        """Where to begin a partition that has no state."""
        first = assigned.start if self._settings.first_start == "earliest" else assigned.end
        log.warning("no position on the changelog: a first start", partition=assigned.partition, next_offset=first)
        return first

    def _next(self, assigned: Assigned, position: Position) -> int:
        """Where to go on; the state must be of this topic and of these settings."""
        s = self._settings
        where = f"topic {s.events_topic!r} partition {assigned.partition}"
        anew = (
            "To begin anew, name a new --state-topic and --recommendations-topic, and make them with `stream-worker "
            "topics --create`."
        )
        if position.topic_id != self._transport.topic_id or position.next_offset > assigned.end:
            raise DataError(
                f"{where}: is not the topic that {s.state_topic!r} was made from: it was deleted and made anew "
                f"(id then {position.topic_id}, now {self._transport.topic_id}; read up to {position.next_offset}, "
                f"ends at {assigned.end}). {anew}"
            )
        if position.partitions != self._transport.partitions:
            raise DataError(
                f"{where}: the topic has {self._transport.partitions} partitions, but {s.state_topic!r} was made from "
                f"{position.partitions}: users have moved between them. {anew}"
            )
        if (position.history_length, position.excluded_length) != (s.history_length, s.excluded_length):
            raise DataError(
                f"{s.state_topic}-{assigned.partition}: was made with --history-length {position.history_length} "
                f"--excluded-length {position.excluded_length}, not {s.history_length} and {s.excluded_length}. "
                f"Start with those. {anew}"
            )
        if position.next_offset >= assigned.start:
            return position.next_offset
        lost = assigned.start - position.next_offset
        if s.on_lost_events == "refuse":
            raise DataError(
                f"{where}: the {lost} events from offset {position.next_offset} to {assigned.start - 1} were deleted "
                "before they were folded: no state can be exact without them. Raise the topic's retention above the "
                "longest outage; to go on without them once, start with --on-lost-events skip."
            )
        log.error("events were deleted before they were folded", partition=assigned.partition, lost=lost)
        self._metrics.lost_events.inc(lost)
        return assigned.start


class Lease:
    """Whether what we own is still ours, as far as we can know without asking: only then may lists go out.

    A worker that was stopped for a while (SIGSTOP, a machine that sleeps) may have lost its partitions without knowing
    it. After such a gap it waits until the group has answered a question that was asked after the gap.

    Args:
        transport: open.
        session_timeout_s: after so long a silence the group gives our partitions to others.
    """

    def __init__(self, transport: Transport, session_timeout_s: float) -> None:
        self._transport = transport
        self._longest_gap_s = session_timeout_s / 2
        self._polled_at = time.monotonic()
        self._doubted_at: float | None = None

    def renew(self) -> None:
        """A poll begins."""
        self.valid  # noqa: B018 - notices a gap that ends here
        self._polled_at = time.monotonic()

    def doubt(self) -> None:
        """Something says that our partitions may have been taken."""
        self._doubted_at = time.monotonic()

    @property
    def valid(self) -> bool:
        """Whether lists may go out."""
        now = time.monotonic()
        if now - self._polled_at > self._longest_gap_s:
            self._doubted_at = now
            return False  # poll first
        if self._doubted_at is not None:
            if self._transport.contact_age_s >= now - self._doubted_at:
                return False
            self._doubted_at = None
        return True
