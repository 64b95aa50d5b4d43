"""Users to encoded top-k lists: batch, infer, encode. It knows neither the log nor who has to be served.

Axes: B users of a step, b users of one inference, K list length, L history the graph looks at.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_worker.batch import NO_ITEM, Feeds, Prepared, Vocabulary, prepare, slices
from stream_worker.bundle import Bundle
from stream_worker.marked import Mark
from stream_worker.messages import TopK, encode_list
from stream_worker.metrics import Metrics, Stopwatch
from stream_worker.outbox import Sent
from stream_worker.settings import Settings
from stream_worker.state import ALL_UNSEEN, Actions, Histories, Partition
from stream_worker.transports.base import Topic
from stream_worker.vectors import NONE, VectorCache

SCORE_DECIMALS = 6


class Due(NamedTuple):
    """Users of one partition who are to get a list: taken off the marked ones, with their marks."""

    state: Partition
    epoch: int
    users: list[str]
    marks: list[Mark]


class ListMaker:
    """Makes lists, and notes in the states what was listed.

    Args:
        settings: see there.
        bundle: warmed up.
        metrics: sizes of batches.
        lap: ends the stages batch, infer and encode.
        actions: names of the codes in the states.
        vectors: what the model keeps of users, if it keeps anything.
    """

    def __init__(
        self,
        settings: Settings,
        bundle: Bundle,
        metrics: Metrics,
        lap: Stopwatch,
        actions: Actions,
        vectors: VectorCache | None,
    ) -> None:
        manifest = bundle.manifest
        self.k = settings.list_length or manifest.K
        self._exclude_seen = manifest.exclude_seen if settings.exclude_seen is None else settings.exclude_seen
        self._variant = settings.variant
        self._bundle = bundle
        self._metrics = metrics
        self._lap = lap
        self._actions = actions
        self._vectors = vectors
        self._vocabulary = Vocabulary.of([], manifest.actions, manifest.excluding_actions)
        self._vocabulary_names = 0  # of the actions' names, how many it covers

    def make(self, due: Sequence[Due], now_ms: Callable[[], int]) -> list[Sent]:
        """The lists of these users, of whom there is one at least, with the time of `now_ms` when they are made."""
        lap, bundle, vectors = self._lap, self._bundle, self._vectors
        rows = [one.state.rows_of(one.users) for one in due]
        prepared, slots_B = self._prepare(due, rows)
        listed = _Listed(len(slots_B), self.k)
        keys_B = np.empty(len(slots_B), np.int64)
        # All batches first, and all lists last: what Python touches is out of the processor's caches after a run.
        for index_b, feeds in list(slices(prepared, bundle.buckets, bundle.feeds, bundle.largest_batch)):
            if vectors is not None:
                feeds |= vectors.take(np.where(prepared.rebuilt_B[index_b], NONE, slots_B[index_b]), len(feeds["now"]))
            lap("batch")
            outputs = bundle.infer(feeds)
            lap("infer")
            if vectors is not None:
                keys_B[index_b] = vectors.keep(slots_B[index_b], outputs)
            listed.put(index_b, feeds["history_items"].shape[1], outputs)
            lap("encode")
            self._metrics.batch_users.observe(len(index_b))
        listed.finish(prepared.history_items_BL)
        records = self._encode(_Columns.of(due, rows, prepared), listed, now_ms())
        start = 0
        for one, rows_B in zip(due, rows, strict=True):
            some = slice(start, start := start + len(rows_B))
            one.state.listed_items[rows_B] = listed.items_BK[some]
            if vectors is not None:
                one.state.vector_key[rows_B], one.state.unseen[rows_B] = keys_B[some], 0
        lap("encode")
        return records

    def _prepare(self, due: Sequence[Due], rows: Sequence[NDArray[np.intp]]) -> tuple[Prepared, NDArray[np.intp]]:
        """What the graph will see of them, and their slots in the cache."""
        bundle, parts = self._bundle, [(one.state, rows_B) for one, rows_B in zip(due, rows, strict=True)]
        if len(self._actions.names) != self._vocabulary_names:
            self._vocabulary_names = len(self._actions.names)
            self._vocabulary = Vocabulary.of(
                self._actions.names, bundle.manifest.actions, bundle.manifest.excluding_actions
            )
        histories = Histories.concatenate([state.gather(rows_B) for state, rows_B in parts])
        unseen_B = np.concatenate([state.unseen[rows_B] for state, rows_B in parts])
        slots_B = np.zeros(len(unseen_B), np.intp)
        if self._vectors is not None:
            slots_B = self._vectors.find(np.concatenate([state.vector_key[rows_B] for state, rows_B in parts]))
            unseen_B[slots_B == NONE] = ALL_UNSEEN
        L = bundle.manifest.L
        return prepare(histories, unseen_B, bundle.items, self._vocabulary, L, self._exclude_seen), slots_B

    def _encode(self, columns: "_Columns", listed: "_Listed", published_ms: int) -> list[Sent]:
        """The records of these lists."""
        model, variant, names = self._bundle.manifest.model, self._variant, self._bundle.items.names
        items = names(listed.items_BK)
        scores = np.round(listed.scores_BK.astype(np.float64), SCORE_DECIMALS).tolist()
        because = names(listed.because_BK) if listed.says_because else None
        filled_B = (listed.items_BK >= 0).sum(1)
        for b in np.flatnonzero(filled_B < self.k).tolist():
            filled = filled_B[b]
            del items[b][filled:], scores[b][filled:]
            if because is not None:
                del because[b][filled:]
        records = []
        for b, (user, mark, state, epoch, events, newest, received, applied) in enumerate(zip(*columns, strict=True)):
            top = TopK(
                user=user,
                items=items[b],
                scores=scores[b],
                because=msgspec.UNSET if because is None else because[b],
                model=model,
                variant=variant,
                events=events,
                event_time=newest,
                received_time=received,
                published_time=published_ms,
                partition=state.number,
                epoch=epoch,
                offset=applied,
            )
            records.append(Sent(state, Topic.RECOMMENDATIONS, applied, user.encode(), encode_list(top), user, mark))
        return records


class _Listed:
    """What the graph gave the users of a step, put together batch by batch.

    Args:
        users: B.
        k: K.
    """

    def __init__(self, users: int, k: int) -> None:
        shape = users, k
        self.items_BK = np.empty(shape, np.int32)  # rows, best first; -1 where there is none, after `finish`
        self.scores_BK = np.empty(shape, np.float32)
        self.because_BK = np.empty(shape, np.int32)  # places from the history's end, 0 for none; items after `finish`
        self.says_because = False

    def put(self, index_b: NDArray[np.intp], length: int, outputs: Feeds) -> None:
        """The outputs of one batch, whose row b is user `index_b[b]`, and which saw histories of this length."""
        count, k = len(index_b), self.items_BK.shape[1]
        self.items_BK[index_b] = outputs["items"][:count, :k]
        self.scores_BK[index_b] = outputs["scores"][:count, :k]
        if "because" in outputs:
            self.says_because = True
            because_bK = outputs["because"][:count, :k]
            self.because_BK[index_b] = np.where(because_bK >= 0, length - because_bK, 0)

    def finish(self, history_items_BL: NDArray[np.int32]) -> None:
        """All batches are there; these are the histories they were of."""
        self.items_BK[~np.isfinite(self.scores_BK)] = NO_ITEM
        if self.says_because:
            from_end_BK = self.because_BK
            there_BK = np.take_along_axis(history_items_BL, history_items_BL.shape[1] - np.maximum(from_end_BK, 1), 1)
            self.because_BK = np.where(from_end_BK > 0, there_BK, NO_ITEM)


class _Columns(NamedTuple):
    """What lists say of their users besides items: an entry a user of the step."""

    users: list[str]
    marks: list[Mark]
    states: list[Partition]
    epochs: list[int]
    events: list[int]  # folded
    newest: list[int]  # time of the newest event, epoch ms
    received: list[int]  # Kafka timestamp of the last event
    applied: list[int]  # offset of the last event

    @classmethod
    def of(cls, due: Sequence[Due], rows: Sequence[NDArray[np.intp]], prepared: Prepared) -> "_Columns":
        """Those of all of them, in order."""

        def each(name: str) -> list[int]:
            parts = (getattr(one.state, name)[rows_B] for one, rows_B in zip(due, rows, strict=True))
            return [value for part in parts for value in part.tolist()]

        return cls(
            users=[user for one in due for user in one.users],
            marks=[mark for one in due for mark in one.marks],
            states=[one.state for one in due for _ in one.users],
            epochs=[one.epoch for one in due for _ in one.users],
            events=each("events"),
            newest=prepared.now_B.tolist(),
            received=each("timestamp"),
            applied=each("applied_offset"),
        )
