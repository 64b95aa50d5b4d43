"""THE file: one step, poll to checkpoint. One thread runs it and owns all state.

A user with events that no list covers is *marked*. A step folds what was polled, which marks users, and then
serves marked users. A list that fails to arrive marks its user again, so the newest list wins.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from stream_worker.batch import NO_ITEM, Feeds, Vocabulary, prepare, slices
from stream_worker.bundle import Bundle
from stream_worker.checkpoint import Checkpoints
from stream_worker.errors import RejectedEventError
from stream_worker.events import Events
from stream_worker.fold import Fold
from stream_worker.judge import Judge
from stream_worker.marked import Key, Mark, Marked
from stream_worker.messages import FORGET, NO_TIMESTAMP, Event, EventDecoder, TopK, encode_list, item_hash
from stream_worker.metrics import Metrics, Stopwatch
from stream_worker.outbox import Outbox, Sent
from stream_worker.ownership import Lease, Owned, Ownership
from stream_worker.rejects import Breaker, rejected
from stream_worker.settings import Settings
from stream_worker.state import ALL_UNSEEN, Actions, Histories, Partition
from stream_worker.transports.base import Cause, Polled, Record, Topic, Transport
from stream_worker.vectors import NONE, VectorCache

log = structlog.get_logger(__name__)

USERS_PER_STEP = 256  # enough to sort into even batches, few enough to poll again soon
CATCHING_UP_RECORDS = 1000
BUSY_POLL_S = 0.02  # of one poll, while acknowledgements and checkpoints are awaited
OBSERVE_INTERVAL_S = 1.0  # lag and sizes
SCORE_DECIMALS = 6


class Decoded(NamedTuple):
    """A record and its event."""

    record: Record
    event: Event


class Served(NamedTuple):
    """A marked user whose list is being made."""

    state: Partition
    row: int
    user: str
    mark: Mark


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
        self._k = settings.list_length or manifest.K
        self._exclude_seen = manifest.exclude_seen if settings.exclude_seen is None else settings.exclude_seen
        self._decode_event = EventDecoder(
            settings.event_user_field,
            settings.event_item_field,
            settings.event_action_field,
            settings.event_time_field,
            int(settings.max_future_s * 1000),
            settings.event_decoder,
        )
        self.actions = Actions(settings.excluding)
        self._vocabulary = Vocabulary.of([], manifest.actions, manifest.excluding_actions)
        self._vocabulary_names = 0  # of the actions' names, how many it covers
        self._lease = Lease(transport, settings.session_timeout_s)
        self._outbox = Outbox(transport, metrics, manifest.model, settings.variant, settings.max_in_flight, self._lease)
        self._breaker = Breaker(settings.events_topic, settings.max_reject_share)
        self._judge = Judge(metrics, settings.variant, bundle.default_list[: self._k])
        kept, most = manifest.kept, settings.vector_cache_users
        self._vectors = VectorCache(kept, most, settings.vector_cache_precision) if kept else None
        self.owned = Ownership(settings, transport, metrics, self.actions, self._k, self._vectors)
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
        self._serve()  # batch, infer, encode, publish
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
                self.marked.mark((owned.state.number, user), timestamp, self._is_stale(timestamp))

    # -- decode --------------------------------------------------------------------------------------------------

    def _decode(self, polled: Polled) -> dict[int, list[Decoded]]:
        decode, keyed = self._decode_event, self._transport.keyed
        decoded: dict[int, list[Decoded]] = {}
        rejects, reason = 0, ""
        for number, records in polled.records.items():
            events = decoded[number] = []
            for record in records:
                try:
                    events.append(Decoded(record, decode(record.key, record.value, record.timestamp, keyed)))
                except RejectedEventError as error:
                    rejects, reason = rejects + 1, str(error)
                    self._metrics.rejected.labels(reason=error.reason).inc()
                    self._outbox.send(rejected(self._settings.events_topic, self.owned[number].state, record, error))
        if decoded:
            self._breaker.count(sum(len(records) for records in polled.records.values()), rejects, reason)
        return decoded

    # -- fold ----------------------------------------------------------------------------------------------------

    def _fold(self, polled: Polled, decoded: dict[int, list[Decoded]]) -> None:
        for number, records in polled.records.items():
            owned = self.owned[number]
            self._fold_partition(owned, decoded[number])
            owned.next_offset = records[-1].offset + 1
            owned.timestamp = records[-1].timestamp
            if owned.catching_up or self._is_stale(owned.timestamp):
                self._note_lag(owned)

    def _fold_partition(self, owned: Owned, decoded: Sequence[Decoded]) -> None:
        state, actions = owned.state, self.actions
        events = Events()
        for record, event in decoded:
            if record.offset < owned.folded_offset:  # read again, because not all that it led to had arrived
                if event.action == FORGET and state.row(event.user) is None:
                    self._forget(state, event.user, record.offset)
                continue
            timestamp = event.time_ms if record.timestamp == NO_TIMESTAMP else record.timestamp
            if state.expiry_due(timestamp):
                events = self._fold_events(owned, events)
                self._erase(state, state.expire(timestamp), record.offset, "ttl")
            elif timestamp > state.newest:
                state.newest = timestamp
            if event.action == FORGET:
                events = self._fold_events(owned, events)
                self._forget(state, event.user, record.offset)
                continue
            action = actions.code(event.action)
            events.add(event.user, item_hash(event.item), event.time_ms // 1000, action, record.offset, timestamp)
        self._fold_events(owned, events)
        self._log_time_ms = max(self._log_time_ms, state.newest)

    def _fold_events(self, owned: Owned, events: Events) -> Events:
        """Fold these, mark their users, judge their lists. Returns a new batch."""
        if not len(events):
            return events
        state, number, names = owned.state, owned.state.number, self.actions.names
        rows_E, outcomes_E = state.fold(events, self.actions.excluding)
        if state.evicted:
            self._evict(state)
        counted = np.flatnonzero(outcomes_E < Fold.DUPLICATE)
        coalesced = 0
        for e in counted.tolist():
            user = events.users[e]
            if state.row(user) is not None:  # else evicted again
                coalesced += self.marked.mark((number, user), events.timestamps[e], owned.catching_up)
        by_code = np.bincount(np.array(events.actions, np.intp)[counted]).tolist()
        counts = {names[code]: count for code, count in enumerate(by_code) if count}
        self._metrics.count_folds(counts, np.bincount(outcomes_E, minlength=len(Fold)).tolist(), coalesced)
        if len(counted):
            known = self._bundle.items.rows_of(np.array(events.items, np.uint64)[counted])
            self._metrics.unknown_items.inc(int((known < 0).sum()))
            self._metrics.unknown_actions.inc(
                sum(count for name, count in counts.items() if name not in self._bundle.manifest.actions)
            )
            self._judge.judge(state.listed_items[rows_E[counted]], known)
        return Events()

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
            self._outbox.send(Sent(state, Topic.RECOMMENDATIONS, offset, user.encode(), None, user))
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
        lap, manifest = self._lap, self._bundle.manifest
        self._outbox.resend()
        users = self._take_marked()
        self._stalled = bool(self.marked) and not users
        if not users:
            return
        if len(self.actions.names) != self._vocabulary_names:
            self._vocabulary_names = len(self.actions.names)
            self._vocabulary = Vocabulary.of(self.actions.names, manifest.actions, manifest.excluding_actions)
        of_partition = list(_by_partition(users))
        histories = Histories.concatenate([state.gather(rows) for state, rows in of_partition])
        unseen_B = np.concatenate([state.unseen[rows] for state, rows in of_partition])
        if self._vectors is not None:
            slots_B = self._vectors.find(np.concatenate([state.vector_key[rows] for state, rows in of_partition]))
            unseen_B[slots_B == NONE] = ALL_UNSEEN
        prepared = prepare(histories, unseen_B, self._bundle.items, self._vocabulary, manifest.L, self._exclude_seen)
        messages: list[Sent] = []
        for index_b, feeds in slices(prepared, manifest.buckets, self._bundle.feeds, self._bundle.largest_batch):
            if self._vectors is not None:
                kept_b = np.where(prepared.rebuilt_B[index_b], NONE, slots_B[index_b])
                feeds |= self._vectors.take(kept_b, len(feeds["now"]))
            lap("batch")
            outputs = self._bundle.infer(feeds)
            lap("infer")
            served = [users[index] for index in index_b]
            if self._vectors is not None:
                for one, key in zip(served, self._vectors.keep(slots_B[index_b], outputs).tolist(), strict=True):
                    one.state.vector_key[one.row], one.state.unseen[one.row] = key, 0
            messages += self._encode(served, feeds, outputs)
            lap("encode")
            self._metrics.batch_users.observe(len(index_b))
        for sent in messages:
            self._outbox.send(sent)

    def _take_marked(self) -> list[Served]:
        """Users to be served now, as many as may be sent; by partition, so that each is gathered at once."""
        if not self.marked:
            return []
        most = min(USERS_PER_STEP, self._outbox.room)
        behind = any(one.catching_up for one in self.owned.values())
        taken = self.marked.take(most, sparing=behind)
        users = []
        for (number, user), mark in sorted(taken, key=_partition):
            state = self.owned[number].state
            row = state.row(user)
            assert row is not None, "a marked user is in the state"
            users.append(Served(state, row, user, mark))
        return users

    def _encode(self, users: Sequence[Served], feeds: Feeds, outputs: Feeds) -> list[Sent]:
        """The lists of one batch; row b of the outputs is user b."""
        count, published_ms, manifest = len(users), self._now_ms(), self._bundle.manifest
        rows_BK = outputs["items"][:count, : self._k]
        scores_BK = np.round(outputs["scores"][:count, : self._k].astype(np.float64), SCORE_DECIMALS)
        filled_B = np.isfinite(scores_BK).sum(1).tolist()  # best first, so what is no item stands at the end
        items_BK = self._bundle.items.names(rows_BK)
        because_BK = self._because(feeds["history_items"], outputs.get("because"), count)
        scores = scores_BK.tolist()
        messages = []
        for b, (state, row, user, mark) in enumerate(users):
            filled = filled_B[b]
            state.listed_items[row, :filled] = rows_BK[b, :filled]
            state.listed_items[row, filled:] = NO_ITEM
            applied, epoch = int(state.applied_offset[row]), self.owned[state.number].epoch
            top = TopK(
                user=user,
                items=items_BK[b][:filled],
                scores=scores[b][:filled],
                because=because_BK[b][:filled] if because_BK else msgspec.UNSET,
                model=manifest.model,
                variant=self._settings.variant,
                events=int(state.events[row]),
                event_time=int(state.times[row, state.length[row] - 1]) * 1000,
                received_time=int(state.timestamp[row]),
                published_time=published_ms,
                partition=state.number,
                epoch=epoch,
                offset=applied,
            )
            key, value = user.encode(), encode_list(top)
            messages.append(Sent(state, Topic.RECOMMENDATIONS, applied, key, value, user, mark))
        return messages

    def _because(
        self, history_items_BL: NDArray[Any], because_BK: NDArray[Any] | None, count: int
    ) -> list[list[str | None]] | None:
        """History positions as the items that stand there, None for -1; None as a whole if the graph does not say."""
        if because_BK is None:
            return None
        because_BK = because_BK[:count, : self._k]
        rows_BK = np.take_along_axis(history_items_BL[:count], np.maximum(because_BK, 0), 1)
        return self._bundle.items.names(np.where(because_BK >= 0, rows_BK, NO_ITEM))

    # -- checkpoint ----------------------------------------------------------------------------------------------

    def _checkpoint(self) -> None:
        failed = self._checkpoints.step(self.owned, self._outbox.held_back)
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

    def _note_lag(self, owned: Owned) -> int:
        """See whether a partition is catching up; returns how many of its records wait."""
        waiting = self._transport.lag().get(owned.state.number, 0)
        owned.catching_up = waiting > CATCHING_UP_RECORDS and self._is_stale(owned.timestamp)
        return waiting

    def _observe(self) -> None:
        metrics, now_ms = self._metrics, self._now_ms()
        for number, owned in self.owned.items():
            if owned.restoring:
                continue
            waiting = self._note_lag(owned)
            age_s = max(0, now_ms - owned.timestamp) / 1000 if waiting and owned.timestamp else 0.0
            metrics.lag_records.labels(partition=number).set(waiting)
            metrics.lag_seconds.labels(partition=number).set(age_s)
            metrics.users.labels(partition=number).set(len(owned.state))
        kept_bytes = 0 if self._vectors is None else self._vectors.nbytes
        metrics.state_bytes.set(sum(owned.state.nbytes for owned in self.owned.values()) + kept_bytes)
        metrics.pending_users.set(len(self.marked))
        metrics.in_flight_bytes.set(self._outbox.nbytes)


def _partition(taken: tuple[Key, Mark]) -> int:
    return taken[0][0]


def _by_partition(users: Sequence[Served]) -> Iterator[tuple[Partition, list[int]]]:
    """The rows of users that are sorted by partition."""
    for _, group in itertools.groupby(users, key=_number):
        served = list(group)
        yield served[0].state, [one.row for one in served]


def _number(served: Served) -> int:
    return served.state.number
