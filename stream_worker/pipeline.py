"""THE file: one step, poll to checkpoint. One thread runs it and owns all state.

A user with events that no list covers is *marked*. A step folds what was polled, which marks users, and then
serves marked users. A list that fails to arrive marks its user again, so the newest list wins.
"""

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import compress
from typing import NamedTuple

import numpy as np
import structlog

from stream_worker.bundle import Bundle
from stream_worker.checkpoint import Checkpoints
from stream_worker.errors import DataError, RejectedEventError
from stream_worker.events import Events
from stream_worker.fold import Fold
from stream_worker.judge import Judge
from stream_worker.lists import Due, ListMaker
from stream_worker.marked import Marked
from stream_worker.messages import EARLIEST_MS, FORGET, LATEST_MS, NO_TIMESTAMP, Event, EventDecoder, item_hash
from stream_worker.metrics import Metrics, Stopwatch
from stream_worker.outbox import Outbox, Sent
from stream_worker.ownership import Lease, Owned, Ownership
from stream_worker.rejects import Breaker, rejected
from stream_worker.settings import Settings
from stream_worker.state import Actions, Partition
from stream_worker.transports.base import Cause, Polled, Record, Topic, Transport
from stream_worker.vectors import VectorCache

log = structlog.get_logger(__name__)

USERS_PER_STEP = 256  # enough to sort into even batches, few enough to poll again soon
CATCHING_UP_RECORDS = 1000
BUSY_POLL_S = 0.02  # of one poll, while acknowledgements and checkpoints are awaited
LAST_FLUSH_S = 2.0  # of the records that made the breaker trip
OBSERVE_INTERVAL_S = 1.0  # lag and sizes


class Decoded(NamedTuple):
    """The records of a partition that are events, and their events."""

    records: list[Record]
    events: list[Event]


class Pipeline:
    """Events to lists.

    Args:
        settings: see there.
        bundle: warmed up.
        transport: open.
        metrics: all of them.
        clock: Unix seconds; None takes the newest timestamp of the log, so that a replay prints the same twice.
    """

    def __init__(
        self,
        settings: Settings,
        bundle: Bundle,
        transport: Transport,
        metrics: Metrics,
        clock: Callable[[], float] | None = time.time,
    ) -> None:
        manifest = bundle.manifest
        self._settings = settings
        self._bundle = bundle
        self._transport = transport
        self._metrics = metrics
        self._clock = clock
        self._log_time_ms = 0
        self._lap = Stopwatch(metrics)
        self._decode_event = EventDecoder(
            settings.event_user_field,
            settings.event_item_field,
            settings.event_action_field,
            settings.event_time_field,
            int(settings.max_future_s * 1000),
            settings.event_decoder,
        )
        self.actions = Actions(settings.excluding)
        self._lease = Lease(transport, settings.session_timeout_s)
        self._outbox = Outbox(transport, metrics, manifest.model, settings.variant, settings.max_in_flight, self._lease)
        self._breaker = Breaker(settings.events_topic, settings.max_reject_share)
        kept, most = manifest.kept, settings.vector_cache_users
        self._vectors = VectorCache(kept, most, settings.vector_cache_precision) if kept else None
        self._lists = ListMaker(settings, bundle, metrics, self._lap, self.actions, self._vectors)
        self._judge = Judge(metrics, settings.variant, bundle.default_list[: self._lists.k])
        self.owned = Ownership(settings, transport, metrics, self.actions, self._lists.k, self._vectors)
        self._checkpoints = Checkpoints(settings, transport, metrics, self.actions)
        self.marked = Marked()
        self._stalled = False  # users are marked, but nothing may be sent
        self._observed_at = -math.inf

    def step(self, timeout_s: float) -> None:
        """Everything once, in the order of the eight verbs.

        Waits for records at most `timeout_s`, and less while anything else may be learnt, such as an acknowledgement.
        """
        lap = self._lap
        lap.start()
        self._lease.renew()
        late = [number for number, one in self.owned.items() if one.catching_up]
        if self.marked or len(self._outbox) or self._checkpoints.owes(self.owned):
            timeout_s = 0 if self.marked and not self._stalled else min(timeout_s, BUSY_POLL_S)
        polled = self._transport.poll(timeout_s, late)
        lap("poll")
        self._follow(polled)
        decoded = self._decode(polled)
        lap("decode")
        self._fold(polled, decoded)
        self._settle()
        lap("fold")
        self._serve()  # batch, infer, encode
        self._transport.push()
        lap("publish")
        self._checkpoint()
        lap("checkpoint")

    def drain(self, timeout_s: float) -> bool:
        """Serve every marked user, wait for the acknowledgements, checkpoint. Whether nothing was left undone."""
        deadline = time.monotonic() + timeout_s
        self._lap.start()
        self._transport.hold(True)
        while (self.marked or len(self._outbox)) and time.monotonic() < deadline:
            self._lease.renew()
            self._follow(self._transport.poll(0))
            self._serve()
            self._transport.flush(min(0.1, max(0.0, deadline - time.monotonic())))
            self._settle()
        written = self._checkpoints.finish(self.owned, self._outbox.held_back, max(deadline, time.monotonic() + 1))
        return written and not self.marked and not len(self._outbox)

    @property
    def problem(self) -> str | None:
        """Why lists are not fresh or states not exact everywhere, or None."""
        if not self.owned.restored:
            return "restoring"
        failure = self._checkpoints.failure
        return f"checkpoints are not written: {failure.message}" if failure else None

    # -- poll: partitions come and go ----------------------------------------------------------------------------

    def _follow(self, polled: Polled) -> None:
        """Forget what is no longer ours: it must not be published. Serve whom a restored partition owes a list."""
        dropped, restored = self.owned.follow(polled)
        for owned in dropped:
            self.marked.drop(owned.state.number)
            self._outbox.drop(owned.state)
        if restored:
            self._observed_at = -math.inf
        for owned in restored:
            self._erase(owned.state, owned.state.expire_now(), owned.next_offset, "ttl")
            for user, row in owned.state.owed():
                timestamp = int(owned.state.timestamp[row])
                self.marked.mark(owned.state.number, [user], [timestamp], self._is_stale(timestamp))

    # -- decode --------------------------------------------------------------------------------------------------

    def _decode(self, polled: Polled) -> dict[int, Decoded]:
        decode, keyed = self._decode_event, self._transport.keyed
        decoded: dict[int, Decoded] = {}
        rejects: list[Sent] = []
        reason = ""
        for number, records in polled.records.items():
            one = decoded[number] = Decoded([], [])
            for record in records:
                try:
                    one.events.append(decode(record.key, record.value, record.timestamp, keyed))
                    one.records.append(record)
                except RejectedEventError as error:
                    reason = str(error)
                    self._metrics.rejected.labels(reason=error.reason).inc()
                    rejects.append(rejected(self._settings.events_topic, self.owned[number].state, record, error))
        if rejects:
            self._outbox.send(rejects)
        if decoded:
            try:
                self._breaker.count(sum(len(records) for records in polled.records.values()), len(rejects), reason)
            except DataError:
                self._transport.flush(LAST_FLUSH_S)  # it sends people to the rejected topic
                raise
        return decoded

    # -- fold ----------------------------------------------------------------------------------------------------

    def _fold(self, polled: Polled, decoded: Mapping[int, Decoded]) -> None:
        behind = []
        for number, records in polled.records.items():
            owned = self.owned[number]
            self._fold_partition(owned, decoded[number])
            stamp = records[-1].timestamp
            owned.timestamp = stamp if EARLIEST_MS <= stamp < LATEST_MS else owned.state.newest
            if owned.catching_up or self._is_stale(owned.timestamp):
                behind.append(owned)
        for number, offset in polled.reached.items():
            self.owned[number].next_offset = offset
        if behind:
            self._note_lag(behind)

    def _fold_partition(self, owned: Owned, decoded: Decoded) -> None:
        """Fold events, stretch by stretch: between two lie the few that expire others or erase their user."""
        state, (records, events) = owned.state, decoded
        offsets = [record.offset for record in records]
        start = bisect_left(offsets, owned.folded_offset)
        for offset, event in zip(offsets[:start], events, strict=False):  # again: not all they led to had arrived
            if event.action == FORGET and state.row(event.user) is None:
                self._forget(state, event.user, offset)
        stamps = [record.timestamp for record in records]
        if NO_TIMESTAMP in stamps:
            pairs = zip(stamps, events, strict=True)
            stamps = [event.time_ms if stamp == NO_TIMESTAMP else stamp for stamp, event in pairs]
        for e in self._interruptions(state, events, stamps, start):
            self._fold_events(owned, events[start:e], offsets[start:e], stamps[start:e])
            if state.expiry_due(stamps[e]):
                self._erase(state, state.expire(stamps[e]), offsets[e], "ttl")
            start = e
            if events[e].action == FORGET:
                state.newest = max(state.newest, stamps[e])
                self._forget(state, events[e].user, offsets[e])
                start = e + 1
        self._fold_events(owned, events[start:], offsets[start:], stamps[start:])
        self._log_time_ms = max(self._log_time_ms, state.newest)

    def _interruptions(
        self, state: Partition, events: Sequence[Event], stamps: Sequence[int], start: int
    ) -> Iterator[int]:
        """The events, from `start` on, that are no plain ones, as `state` is when each is asked for."""
        forgets = [e for e in range(start, len(events)) if events[e].action == FORGET]
        if not state.expiry_due(max(stamps[start:], default=0)):
            yield from forgets
            return
        newest = state.newest
        for e in range(start, len(events)):
            newest = max(newest, stamps[e])
            if events[e].action == FORGET or state.expiry_due(newest):
                yield e

    def _fold_events(self, owned: Owned, some: Sequence[Event], offsets: list[int], stamps: list[int]) -> None:
        """Fold these, mark their users, judge their lists."""
        if not some:
            return
        state, names = owned.state, self.actions.names
        state.newest = max(state.newest, max(stamps))
        events = Events(
            [event.user for event in some],
            [item_hash(event.item) for event in some],
            [event.time_ms // 1000 for event in some],
            [self.actions.code(event.action) for event in some],
            offsets,
            stamps,
        )
        rows_E, outcomes_E = state.fold(events, self.actions.excluding)
        counts_E = outcomes_E < Fold.DUPLICATE
        counted = np.flatnonzero(counts_E)
        served_E = counts_E
        if state.evicted:
            self._evict(state)
            served_E = counts_E & [state.row(user) is not None for user in events.users]
        users, stamps = list(compress(events.users, served_E)), list(compress(stamps, served_E))
        coalesced = self.marked.mark(state.number, users, stamps, owned.catching_up)
        codes = np.array(events.actions, np.intp)[counted]
        by_code = np.bincount(codes).tolist()
        counts = {names[code]: count for code, count in enumerate(by_code) if count}
        self._metrics.count_folds(counts, np.bincount(outcomes_E, minlength=len(Fold)).tolist(), coalesced)
        if len(counted):
            known = self._bundle.items.rows_of(np.array(events.items, np.uint64)[counted])
            self._metrics.unknown_items.inc(int((known < 0).sum()))
            self._metrics.unknown_actions.inc(
                sum(count for name, count in counts.items() if name not in self._bundle.manifest.actions)
            )
            wanted = ~np.array(self.actions.negative)[codes] & served_E[counted]  # the row may be another user's now
            self._judge.judge(state.listed_items[rows_E[counted[wanted]]], known[wanted])

    def _forget(self, state: Partition, user: str, offset: int) -> None:
        """The record lies in every partition; one where the user never was must not erase the list of somebody back."""
        held = state.row(user) is not None
        state.forget(user)
        if held or self._transport.home(user.encode()) == state.number:
            self._erase(state, [user], offset, "forget")

    def _erase(self, state: Partition, users: Sequence[str], offset: int, reason: str) -> None:
        """These users are no longer in the state: erase their lists, too."""
        for user in users:
            self.marked.discard((state.number, user))
        lists = [Sent(state, Topic.RECOMMENDATIONS, offset, user.encode(), None, user) for user in users]
        self._outbox.erase(lists)
        self._metrics.evicted_for[reason].inc(len(users))

    def _evict(self, state: Partition) -> None:
        """Users who had to make room get no list; the one they have stays."""
        for user in state.evicted:
            self.marked.discard((state.number, user))
        self._metrics.evicted_for["room"].inc(len(state.evicted))
        state.evicted = []

    def _settle(self) -> None:
        """Users whose list did not arrive are marked again, from the first event it covered."""
        for sent in self._outbox.settle():
            assert sent.mark is not None
            self.marked.put_back((sent.state.number, sent.user), sent.mark)

    # -- batch, infer, encode, publish ---------------------------------------------------------------------------

    def _serve(self) -> None:
        self._outbox.send_waiting()
        due = self._take_marked()
        self._stalled = bool(self.marked) and not due
        if due:
            self._outbox.send(self._lists.make(due, self._now_ms))

    def _take_marked(self) -> list[Due]:
        """Users to be served now, as many as may be sent."""
        if not self.marked:
            return []
        most = min(USERS_PER_STEP, self._outbox.room)
        behind = any(one.catching_up for one in self.owned.values())
        due: dict[int, Due] = {}
        for (number, user), mark in self.marked.take(most, sparing=behind):
            if number not in due:
                due[number] = Due(self.owned[number].state, self.owned[number].epoch, [], [])
            due[number].users.append(user)
            due[number].marks.append(mark)
        return list(due.values())

    # -- checkpoint ----------------------------------------------------------------------------------------------

    def _checkpoint(self) -> None:
        failed = self._checkpoints.step(self.owned, self._outbox.held_back, self._outbox.crowded)
        if failed is not None and failed.cause is Cause.MEMBERSHIP:
            self._lease.doubt()
        now = time.monotonic()
        if now - self._observed_at >= OBSERVE_INTERVAL_S:
            self._observed_at = now
            self._observe()

    def _now_ms(self) -> int:
        return self._log_time_ms if self._clock is None else int(self._clock() * 1000)

    def _is_stale(self, timestamp: int) -> bool:
        return self._now_ms() - timestamp > self._settings.stale_after_s * 1000

    def _note_lag(self, some: Sequence[Owned]) -> dict[int, int]:
        """See whether these partitions are catching up; returns how many records of each wait."""
        lag = self._transport.lag()
        waiting = {one.state.number: lag.get(one.state.number, 0) for one in some}
        for one in some:
            one.catching_up = waiting[one.state.number] > CATCHING_UP_RECORDS and self._is_stale(one.timestamp)
        return waiting

    def _observe(self) -> None:
        metrics, now_ms = self._metrics, self._now_ms()
        served = [one for one in self.owned.values() if not one.restoring]
        waiting = self._note_lag(served)
        for owned in served:
            number = owned.state.number
            age_s = max(0, now_ms - owned.timestamp) / 1000 if waiting[number] and owned.timestamp else 0.0
            metrics.lag_records.labels(partition=number).set(waiting[number])
            metrics.lag_seconds.labels(partition=number).set(age_s)
            metrics.users.labels(partition=number).set(len(owned.state))
        kept_bytes = 0 if self._vectors is None else self._vectors.nbytes
        metrics.state_bytes.set(sum(owned.state.nbytes for owned in self.owned.values()) + kept_bytes)
        metrics.pending_users.set(len(self.marked))
        metrics.in_flight_bytes.set(self._outbox.nbytes)
