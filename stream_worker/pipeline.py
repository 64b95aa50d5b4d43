"""THE file: one step, poll to checkpoint. One thread runs it and owns all state.

A user with events that no list covers is *marked*. A step folds what was polled, which marks users, and then
serves marked users, oldest first. A list that fails to arrive marks its user again, so the newest list wins.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from stream_worker.batch import NO_ITEM, Feeds, Vocabulary, prepare, slices
from stream_worker.bundle import Bundle
from stream_worker.checkpoint import Owned, committable
from stream_worker.errors import DataError, RejectedEventError
from stream_worker.fold import Fold
from stream_worker.judge import Judge
from stream_worker.messages import FORGET, NO_TIMESTAMP, Event, EventDecoder, TopK, encode_list, item_hash
from stream_worker.metrics import Metrics, Stopwatch
from stream_worker.outbox import Mark, Outbox, Sent
from stream_worker.settings import Settings
from stream_worker.state import Actions, Histories, Partition
from stream_worker.transports.base import Assigned, Polled, Record, Topic, Transport

log = structlog.get_logger(__name__)

USERS_PER_STEP = 256  # enough to sort into even batches, few enough to poll again soon
CATCHING_UP_RECORDS = 1000
MAX_REJECTED_BYTES = 900_000  # of a value on the rejected topic: with its headers below the broker's 1 MB
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
        self._outbox = Outbox(transport, metrics, manifest.model, settings.variant, settings.max_in_flight)
        self._judge = Judge(metrics, settings.variant, bundle.default_list[: self._k])
        self.owned: dict[int, Owned] = {}
        self.marked: dict[tuple[int, str], Mark] = {}  # insertion order: whose first event came first
        self._stalled = False  # users are marked, but nothing may be sent
        self._checkpoint_at = self._committed_at = time.monotonic()
        self._committing_since: float | None = None

    def step(self, timeout_s: float) -> None:
        """Everything once, in the order of the eight verbs. Waits for records at most `timeout_s`."""
        lap = self._lap
        lap.start()
        polled = self._transport.poll(0 if self.marked and not self._stalled else timeout_s)
        lap("poll")
        self._rebalance(polled)
        decoded = self._decode(polled)
        lap("decode")
        self._fold(polled, decoded)
        self._note_restored()
        self._settle()
        lap("fold")
        self._serve()  # batch, infer, encode, publish
        self._checkpoint()
        lap("checkpoint")

    def drain(self, timeout_s: float) -> bool:
        """Serve every marked user, wait for the acknowledgements, commit. Whether nothing was left undone."""
        deadline = time.monotonic() + timeout_s
        self._lap.start()
        while (self.marked or len(self._outbox)) and time.monotonic() < deadline:
            self._serve()
            self._transport.flush(min(0.1, max(0.0, deadline - time.monotonic())))
            self._settle()
        positions = self._positions()
        committed = not positions or self._transport.commit_now(positions, max(1.0, deadline - time.monotonic()))
        return committed and not self.marked and not len(self._outbox)

    @property
    def restored(self) -> bool:
        """Whether the state of every partition is complete."""
        return not any(one.restoring for one in self.owned.values())

    # -- poll: partitions come and go ----------------------------------------------------------------------------

    def _rebalance(self, polled: Polled) -> None:
        if polled.revoked or polled.assigned:
            self._metrics.rebalances.inc()
            gained = sorted(one.partition for one in polled.assigned)
            log.info("rebalance", revoked=sorted(polled.revoked), assigned=gained)
        for number in polled.revoked:
            self._drop(number)
        for assigned in polled.assigned:
            self._drop(assigned.partition)
            self._take(assigned)

    def _drop(self, number: int) -> None:
        """Another worker has the partition: what we know of it is worth nothing, and must not be published."""
        owned = self.owned.pop(number, None)
        if owned is not None:
            self.marked = {key: mark for key, mark in self.marked.items() if key[0] != number}
            self._outbox.drop(owned.state)
            self._metrics.drop_partition(number)

    def _take(self, assigned: Assigned) -> None:
        """Fold the partition from the first record the log still has; those the group is done with get no list."""
        number, settings = assigned.partition, self._settings
        done = assigned.committed
        if done is None:
            done = assigned.start if settings.first_start == "earliest" else assigned.end
        elif done > assigned.end:
            raise DataError(
                f"topic {settings.events_topic!r} partition {number}: group {settings.group!r} has read up to {done}, "
                f"but the log ends at {assigned.end}. Was the topic deleted and made anew? Then choose another --group."
            )
        elif done < assigned.start:
            lost = assigned.start - done
            log.error("events were deleted before they were read; raise the retention", partition=number, lost=lost)
            self._metrics.lost_events.inc(lost)
        state = Partition(number, settings.history_length, settings.excluded_length, self._k)
        committed = -1 if assigned.committed is None else assigned.committed
        self.owned[number] = Owned(state, done, assigned.start, committed, time.monotonic())
        self._metrics.restoring.labels(partition=number).set(1)
        self._transport.seek(number, assigned.start)

    def _note_restored(self) -> None:
        for number, owned in self.owned.items():
            if owned.restoring and self._transport.position(number) >= owned.restore_until:
                owned.restoring = False
                seconds = time.monotonic() - owned.assigned_at
                self._metrics.restoring.labels(partition=number).set(0)
                self._metrics.restore_seconds.observe(seconds)
                log.info("restored", partition=number, users=len(owned.state), seconds=round(seconds, 3))

    # -- decode --------------------------------------------------------------------------------------------------

    def _decode(self, polled: Polled) -> dict[int, list[Decoded]]:
        decode, keyed = self._decode_event, self._transport.keyed
        decoded: dict[int, list[Decoded]] = {}
        for number, records in polled.records.items():
            events = decoded[number] = []
            for record in records:
                try:
                    events.append(Decoded(record, decode(record.key, record.value, record.timestamp, keyed)))
                except RejectedEventError as error:
                    self._reject(self.owned[number], record, error)
        return decoded

    def _reject(self, owned: Owned, record: Record, error: RejectedEventError) -> None:
        if record.offset < owned.restore_until:
            return  # rejected before the restart
        self._metrics.rejected.labels(reason=error.reason).inc()
        value = record.value or b""
        headers = {
            "topic": self._settings.events_topic,
            "partition": str(owned.state.number),
            "offset": str(record.offset),
            "stage": "decode",
            "exception.class.name": error.reason,
            "exception.message": str(error),
        }
        if len(value) > MAX_REJECTED_BYTES:
            headers["truncated.from.bytes"] = str(len(value))
            value = value[:MAX_REJECTED_BYTES]
        encoded = [(f"__connect.errors.{name}", text.encode(errors="replace")) for name, text in headers.items()]
        self._outbox.send(Sent(owned.state, Topic.REJECTED, record.offset, record.key, value, headers=encoded))

    # -- fold ----------------------------------------------------------------------------------------------------

    def _fold(self, polled: Polled, decoded: dict[int, list[Decoded]]) -> None:
        for number, records in polled.records.items():
            owned = self.owned[number]
            self._fold_partition(owned, decoded[number])
            owned.next_offset = records[-1].offset + 1
            owned.timestamp = records[-1].timestamp

    def _fold_partition(self, owned: Owned, decoded: Sequence[Decoded]) -> None:
        state, actions, number = owned.state, self.actions, owned.state.number
        rows: list[int] = []  # of the events that count: not from before a restart, not repeated
        items: list[int] = []
        counts: Counter[str] = Counter()
        outcomes: Counter[Fold] = Counter()
        coalesced = 0
        for record, event in decoded:
            fresh = record.offset >= owned.restore_until
            if event.action == FORGET:
                self._forget(owned, event.user, record.offset if fresh else None)
                continue
            action, item = actions.code(event.action), item_hash(event.item)
            timestamp = event.time_ms if record.timestamp == NO_TIMESTAMP else record.timestamp
            self._log_time_ms = max(self._log_time_ms, timestamp)
            row, outcome = state.fold(event, item, action, actions.excluding[action], record.offset, timestamp)
            if not fresh:
                continue
            outcomes[outcome] += 1
            if outcome < Fold.DUPLICATE:
                counts[event.action] += 1
                rows.append(row)
                items.append(item)
                if (number, event.user) in self.marked:
                    coalesced += 1
                else:
                    self.marked[number, event.user] = Mark(record.offset, timestamp, owned.catching_up)
        self._metrics.count_folds(counts, outcomes, coalesced)
        if rows:
            known = self._bundle.items.rows_of(np.array(items, np.uint64))
            self._metrics.unknown_items.inc(int((known < 0).sum()))
            self._metrics.unknown_actions.inc(
                sum(count for name, count in counts.items() if name not in self._bundle.manifest.actions)
            )
            self._judge.judge(state.listed_items[rows], known)

    def _forget(self, owned: Owned, user: str, offset: int | None) -> None:
        """Erase a user, and the user's list unless that was done before a restart (`offset` None)."""
        owned.state.forget(user)
        self.marked.pop((owned.state.number, user), None)
        if offset is not None:
            self._metrics.forgotten.inc()
            self._outbox.send(Sent(owned.state, Topic.RECOMMENDATIONS, offset, user.encode(), None, user))

    def _settle(self) -> None:
        """Users whose list did not arrive are marked again, from the first event it covered."""
        for sent in self._outbox.settle():
            assert sent.mark is not None
            key = sent.state.number, sent.user
            newer = self.marked.setdefault(key, sent.mark)
            newer.first_offset = min(newer.first_offset, sent.mark.first_offset)
            newer.oldest_timestamp = min(newer.oldest_timestamp, sent.mark.oldest_timestamp)

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
        histories = Histories.concatenate(list(_gather(users)))
        prepared = prepare(histories, self._bundle.items, self._vocabulary, manifest.L, self._exclude_seen)
        messages: list[Sent] = []
        for index_b, feeds in slices(prepared, manifest.buckets):
            lap("batch")
            outputs = self._bundle.infer(feeds)
            lap("infer")
            messages += self._encode([users[index] for index in index_b], feeds, outputs)
            lap("encode")
            self._metrics.batch_users.observe(len(index_b))
        # All at the end: the client's thread, woken by the first record, would fight the inference for the GIL.
        for sent in messages:
            self._outbox.send(sent)
        lap("publish")

    def _take_marked(self) -> list[Served]:
        """The users marked longest, as many as may be sent; by partition, so that each is gathered at once."""
        number_of_users = min(USERS_PER_STEP, self._outbox.room) if self.marked else 0
        keys = [key for key, _ in zip(self.marked, range(number_of_users), strict=False)]
        users = []
        for key in sorted(keys, key=lambda key: key[0]):
            state = self.owned[key[0]].state
            row = state.row(key[1])
            assert row is not None, "a marked user is in the state"
            users.append(Served(state, row, key[1], self.marked.pop(key)))
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
            applied = int(state.applied_offset[row])
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
                offset=applied,
            )
            key, value = user.encode(), encode_list(top)
            messages.append(Sent(state, Topic.RECOMMENDATIONS, mark.first_offset, key, value, user, mark, applied))
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
        """See what became of the commit under way; once an interval, start the next one. There is one at a time."""
        now = time.monotonic()
        for positions, cause in self._transport.commits():
            self._note_commit(positions, cause, now)
        if now - self._checkpoint_at < self._settings.checkpoint_interval_s:
            return
        if self._committing_since is not None and now - self._committing_since < self._settings.session_timeout_s:
            return
        self._checkpoint_at = now
        positions = self._positions()
        if positions:
            self._committing_since = now
            self._transport.commit(positions)
        elif not self.marked and not len(self._outbox):
            self._committed_at = now  # nothing is owed
        self._observe(now)

    def _note_commit(self, positions: Mapping[int, int], cause: str | None, now: float) -> None:
        started, self._committing_since = self._committing_since, None
        if cause is not None:
            self._metrics.checkpoint_failures.labels(cause=cause).inc()
            return
        self._committed_at = now
        if started is not None:
            self._metrics.checkpoint_seconds.observe(now - started)
        for number, offset in positions.items():
            if number in self.owned:
                self.owned[number].committed = max(offset, self.owned[number].committed)

    def _positions(self) -> dict[int, int]:
        def unanswered() -> Iterator[tuple[int, int]]:
            yield from ((number, mark.first_offset) for (number, _), mark in self.marked.items())
            yield from ((sent.state.number, sent.offset) for sent in self._outbox)

        return committable(self.owned, unanswered())

    def _now_ms(self) -> int:
        return self._log_time_ms if self._clock is None else int(self._clock() * 1000)

    def _observe(self, now: float) -> None:
        metrics, lag, now_ms = self._metrics, self._transport.lag(), self._now_ms()
        for number, owned in self.owned.items():
            behind = lag.get(number, 0)
            age_s = max(0, now_ms - owned.timestamp) / 1000 if behind else 0.0
            owned.catching_up = behind > CATCHING_UP_RECORDS and age_s > self._settings.stale_after_s
            metrics.lag_records.labels(partition=number).set(behind)
            metrics.lag_seconds.labels(partition=number).set(age_s)
            metrics.users.labels(partition=number).set(len(owned.state))
        metrics.checkpoint_age.set(now - self._committed_at)
        metrics.state_bytes.set(sum(owned.state.nbytes for owned in self.owned.values()))
        metrics.pending_users.set(len(self.marked))
        metrics.in_flight_bytes.set(self._outbox.nbytes)


def _gather(users: Sequence[Served]) -> Iterator[Histories]:
    """The exact state of users that are sorted by partition."""
    rows: list[int] = []
    for index, served in enumerate(users):
        rows.append(served.row)
        if index + 1 == len(users) or users[index + 1].state is not served.state:
            yield served.state.gather(rows)
            rows = []
