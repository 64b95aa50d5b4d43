"""What was handed to the transport and is not acknowledged, and what must therefore be made or sent again."""

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from stream_worker.marked import Mark
from stream_worker.metrics import Metrics
from stream_worker.ownership import Lease
from stream_worker.state import Partition
from stream_worker.transports.base import Topic, Transport

FREE_RETRIES = 20  # at once, of what is no list and was refused: a broker that comes and goes
FIRST_RETRY_S, MOST_RETRY_S = 0.1, 5.0  # before the next ones: their topic is gone, or closed to us
MOST_REJECTS_BYTES = 2**26  # of rejected events that wait


@dataclass(eq=False, slots=True)
class Sent:
    """A record handed to the transport; the token that its delivery brings back.

    A list has a mark and is made anew if it fails; a rejected event or a tombstone is sent again as it was.
    """

    state: Partition
    topic: Topic
    offset: int  # the last event it answers
    key: bytes | None
    value: bytes | None
    user: str = ""
    mark: Mark | None = None
    headers: Sequence[tuple[str, bytes]] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of key and value."""
        return len(self.key or b"") + len(self.value or b"")


class Outbox:
    """Publishes through the transport and remembers until the acknowledgement.

    Args:
        transport: open.
        metrics: counts lists and failures, observes event-to-list.
        model, variant: labels of the lists.
        max_in_flight: unacknowledged records at which there is no more room.
        lease: while it is not valid nothing is published.
    """

    def __init__(
        self, transport: Transport, metrics: Metrics, model: str, variant: str, max_in_flight: int, lease: Lease
    ) -> None:
        self._transport = transport
        self._lease = lease
        self._max_in_flight = max_in_flight
        self.nbytes = 0  # of keys and values that are not acknowledged
        self._outstanding: set[Sent] = set()
        self._rejects: list[Sent] = []  # rejected events that failed
        self._waiting: list[Sent] = []  # tombstones that failed, or for which there was no room; in order
        self._refusals = 0  # one after the other, of what waits
        self._retry_at = -math.inf  # monotonic
        self._unsent: list[Sent] = []  # lists that were not published, because the lease had run out
        self._lists = metrics.lists.labels(model=model, variant=variant)
        self._failures = {topic: metrics.publish_failures.labels(topic=topic.value) for topic in Topic}
        self._event_to_list = metrics.event_to_list

    @property
    def room(self) -> int:
        """Records that may be sent now; 0 while the broker is away, or others may own our partitions."""
        if not self._lease.valid or not self._transport.writable:
            return 0
        return max(0, self._max_in_flight - self._transport.in_flight)

    def send(self, some: Sequence[Sent]) -> None:
        """Publish, and remember."""
        # Before the lease is looked at: whenever we are stopped after this line, the records are old when we wake.
        timestamp_ms = int(time.time() * 1000)
        if not self._lease.valid:
            for sent in some:
                (self._unsent if sent.mark else self._queue(sent)).append(sent)
            return
        self._outstanding.update(some)
        publish = self._transport.publish
        for sent in some:
            self.nbytes += sent.nbytes
            publish(sent.topic, sent.key, sent.value, sent, sent.headers, timestamp_ms)

    def erase(self, some: Sequence[Sent]) -> None:
        """Publish these tombstones, as soon as there is room: the users of a whole partition may expire at once."""
        self._waiting += some
        self.send_waiting()

    def send_waiting(self) -> None:
        """Publish what waits and is no list."""
        if not ((self._rejects or self._waiting) and time.monotonic() >= self._retry_at and (room := self.room)):
            return
        rejects, self._rejects = self._rejects[:room], self._rejects[room:]
        self.send(rejects)
        room -= len(rejects)
        some, self._waiting = self._waiting[:room], self._waiting[room:]
        now = []
        for sent in some:
            row = sent.state.row(sent.user)
            if row is not None and sent.state.listed_offset[row] > sent.offset:
                continue  # the user has come back, and a list has replaced what was to be erased
            if row is not None and any(
                one.mark and one.state is sent.state and one.user == sent.user for one in self._outstanding
            ):
                self._waiting.append(sent)  # that list may, or else comes again behind the tombstone
            else:
                now.append(sent)
        self.send(now)

    def settle(self) -> list[Sent]:
        """Look at what was delivered. Returns the lists that failed and that no newer list has replaced."""
        failed, self._unsent = self._unsent, []
        listed: dict[Partition, list[Sent]] = defaultdict(list)
        waited_s: dict[bool, list[float]] = {False: [], True: []}
        refused = False
        for sent, has_failed, at in self._transport.deliveries():
            if sent not in self._outstanding:
                continue  # its partition is no longer ours
            self._outstanding.discard(sent)
            self.nbytes -= sent.nbytes
            mark = sent.mark
            if has_failed:
                self._failures[sent.topic].inc()
                if mark:
                    failed.append(sent)
                else:
                    self._queue(sent).append(sent)
                    refused = True
            elif mark:
                listed[sent.state].append(sent)
                waited_s[mark.catching_up].append(at - mark.oldest_timestamp / 1000)
            else:
                self._refusals = 0
                if sent.topic is Topic.RECOMMENDATIONS:
                    sent.state.erased(sent.user)
        if refused:  # each failure costs a producer, and all lists wait for the next one
            self._refusals += 1
            if self._refusals > FREE_RETRIES:
                wait_s = min(MOST_RETRY_S, FIRST_RETRY_S * 2 ** min(self._refusals - FREE_RETRIES, 10))
                self._retry_at = time.monotonic() + wait_s
        for state, lists in listed.items():
            state.listed([sent.user for sent in lists], [sent.offset for sent in lists])
            self._lists.inc(len(lists))
        for catching_up, seconds in waited_s.items():
            if seconds:
                self._event_to_list.observe(str(catching_up).lower(), np.maximum(seconds, 0))
        return [sent for sent in failed if not _replaced(sent)]

    def drop(self, state: Partition) -> None:
        """Forget what concerns a partition that is no longer ours."""
        self._outstanding = {sent for sent in self._outstanding if sent.state is not state}
        self._rejects = [sent for sent in self._rejects if sent.state is not state]
        self._waiting = [sent for sent in self._waiting if sent.state is not state]
        self._unsent = [sent for sent in self._unsent if sent.state is not state]
        self.nbytes = sum(sent.nbytes for sent in self._outstanding)

    @property
    def held_back(self) -> Iterator[tuple[int, int]]:
        """(partition, offset) of the events whose rejection or erasure is not acknowledged."""
        for sent in (*self._outstanding, *self._rejects, *self._waiting):
            if sent.mark is None:
                yield sent.state.number, sent.offset

    def __len__(self) -> int:
        """How much is not acknowledged."""
        return len(self._outstanding) + len(self._rejects) + len(self._waiting) + len(self._unsent)

    @property
    def crowded(self) -> bool:
        """Whether so many rejected events wait that no more may come: their topic takes none."""
        return sum(sent.nbytes for sent in self._rejects) > MOST_REJECTS_BYTES

    def _queue(self, sent: Sent) -> list[Sent]:
        return self._rejects if sent.topic is Topic.REJECTED else self._waiting


def _replaced(sent: Sent) -> bool:
    row = sent.state.row(sent.user)
    return row is None or bool(sent.state.listed_offset[row] >= sent.offset)
