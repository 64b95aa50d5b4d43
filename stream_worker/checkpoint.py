"""Changed states and positions, to the changelog, atomically: when, what, and what became of it.

The numbers are those of docs/guarantees.md. 1: the membership was read, and the rebalances after it were followed (by
the last poll); now copy the users that changed and the positions. 2: the transport writes them in one transaction,
while the loop goes on. 3: confirmed, what the copy holds is clean, and what changed since is not.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import structlog

from stream_worker import changelog
from stream_worker.changelog import POSITION_KEY, Position, encode_position
from stream_worker.errors import FencedError
from stream_worker.metrics import Metrics
from stream_worker.ownership import Owned
from stream_worker.settings import Settings
from stream_worker.state import Actions, Copy
from stream_worker.transports.base import Cause, Change, Outcome, Transport

log = structlog.get_logger(__name__)

PATIENCE = 5  # intervals between two checkpoints in a backlog, where most users would be written each time
MAX_REFUSALS = 5  # one after the other, by a broker that answers


@dataclass(frozen=True)
class _Part:
    """What a checkpoint holds of one partition."""

    owned: Owned
    copy: Copy
    position: Position


class Checkpoints:
    """One at a time.

    Args:
        settings: see there.
        transport: open.
        metrics: durations, failures, age.
        actions: names of the codes in the states.
    """

    def __init__(self, settings: Settings, transport: Transport, metrics: Metrics, actions: Actions) -> None:
        self._settings = settings
        self._transport = transport
        self._metrics = metrics
        self._actions = actions
        self._parts: list[_Part] | None = None  # of the one under way
        self._started_at = self._confirmed_at = time.monotonic()
        self._refusals = 0
        self.failure: Outcome | None = None  # of the last one, until one is confirmed
        for cause in Cause:  # from 0 on, so that Prometheus sees the first one as an increase
            metrics.checkpoint_failures.labels(cause=cause.value)
        metrics.checkpoint_age.set_function(lambda: time.monotonic() - self._confirmed_at)

    def step(
        self, owned: Mapping[int, Owned], held_back: Iterable[tuple[int, int]], crowded: bool = False
    ) -> Outcome | None:
        """See what became of the one under way; start the next when it is due. Returns a failure that was learnt.

        Args:
            owned: our partitions, with all rebalances followed that the last poll brought.
            held_back: (partition, offset) of records whose rejection or erasure is not acknowledged; a position
                does not pass them.
            crowded: whether there are too many of them, so that no more events may be read.

        Raises:
            FencedError: another process has our identity, or the broker refuses again and again.
        """
        outcome = self._settle()
        dirty = sum(len(one.state.changed) for one in owned.values() if not one.restoring)
        full = dirty >= self._settings.max_dirty_users
        patience = PATIENCE if any(one.catching_up for one in owned.values()) else 1
        due = time.monotonic() - self._started_at >= self._settings.checkpoint_interval_s * patience
        if self._parts is None and (due or (full and self.failure is None)):
            self._start(owned, held_back)
        # Without room for more changes, or without knowing whether they can be written, no more events.
        stuck = self.failure is not None and self.failure.cause is not Cause.MEMBERSHIP
        self._transport.hold(stuck or crowded or (full and self._parts is not None))
        return outcome

    def owes(self, owned: Mapping[int, Owned]) -> bool:
        """Whether a checkpoint is under way, or there is something to write."""
        return (
            self._parts is not None
            or self.failure is not None
            or any(one.restoring or one.state.changed or one.next_offset > one.written for one in owned.values())
        )

    def finish(self, owned: Mapping[int, Owned], held_back: Iterable[tuple[int, int]], deadline: float) -> bool:
        """Write what is left, and wait for it until `deadline` (monotonic). Whether nothing is left unwritten."""
        held_back = list(held_back)
        for _ in range(2):  # the one under way does not hold the last changes
            while self._parts is not None:
                remaining_s = deadline - time.monotonic()
                if remaining_s <= 0:
                    return False
                self._settle(remaining_s)
            self._start(owned, held_back)
        return self._parts is None

    def _start(self, owned: Mapping[int, Owned], held_back: Iterable[tuple[int, int]]) -> None:
        self._started_at = time.monotonic()
        positions = {number: one.next_offset for number, one in owned.items() if not one.restoring}
        for number, offset in held_back:
            if number in positions:
                positions[number] = min(positions[number], offset)
        parts = [
            _Part(owned[number], owned[number].state.take_changed(), self._position(owned[number], offset))
            for number, offset in positions.items()
            if owned[number].state.changed or offset > owned[number].written
        ]
        if not parts:
            self._confirmed_at = self._started_at  # nothing is left to write
            self.failure = None
            return
        self._parts = parts
        self._transport.checkpoint(
            self._changes(parts), {part.owned.state.number: part.position.next_offset for part in parts}
        )

    def _position(self, owned: Owned, offset: int) -> Position:
        return Position(
            next_offset=max(offset, owned.written),
            folded_offset=max(owned.next_offset, owned.folded_offset),
            newest=owned.state.newest,
            topic_id=self._transport.topic_id,
            partitions=self._transport.partitions,
            history_length=self._settings.history_length,
            excluded_length=self._settings.excluded_length,
            epoch=owned.epoch,
        )

    def _changes(self, parts: Iterable[_Part]) -> Iterator[Change]:
        for part in parts:
            number = part.owned.state.number
            yield from changelog.changes(number, part.copy, self._actions)
            yield Change(number, POSITION_KEY, encode_position(part.position))

    def _settle(self, timeout_s: float = 0) -> Outcome | None:
        if self._parts is None:
            return None
        outcome = self._transport.checkpointed(timeout_s)
        if outcome is None:
            return None
        parts, self._parts = self._parts, None
        if outcome.cause is None:
            self._confirmed_at = time.monotonic()
            self._metrics.checkpoint_seconds.observe(self._confirmed_at - self._started_at)
            self._metrics.checkpoint_users.inc(sum(len(part.copy.users) for part in parts))
            if self.failure is not None:
                log.info("checkpoints are written again")
            self.failure, self._refusals = None, 0
            for part in parts:
                part.owned.written = part.position.next_offset
            return None
        for part in parts:  # as dirty as before
            part.owned.state.changed.update(part.copy.users, part.copy.gone)
        self.failure = outcome
        self._metrics.checkpoint_failures.labels(cause=outcome.cause.value).inc()
        log.warning("a checkpoint was not written, trying again", cause=outcome.cause.value, error=outcome.message)
        self._refusals = self._refusals + 1 if outcome.cause is Cause.REFUSED else 0
        if self._refusals == MAX_REFUSALS:
            raise FencedError(
                f"topic {self._settings.state_topic!r}: the broker answers, but has refused {MAX_REFUSALS} checkpoints "
                f"one after the other: {outcome.message}. See docs/guarantees.md."
            )
        return outcome
