"""The seam to the log: what the pipeline may ask of a transport, and what it may rely on.

One thread calls all of this. A transport may own threads (the Kafka client does); none of them ever calls back
into the pipeline: what they learn is handed over by `poll` and `deliveries`.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Protocol


class Topic(StrEnum):
    """Where a record goes; the transport knows the real name."""

    RECOMMENDATIONS = "recommendations"
    REJECTED = "rejected"


class Record(Protocol):
    """A record of the events topic. A client's own record class fits as it is, so nothing is copied."""

    @property
    def offset(self) -> int:
        """Position in its partition."""

    @property
    def timestamp(self) -> int:
        """Kafka timestamp, epoch ms; -1 where the log keeps none."""

    @property
    def key(self) -> bytes | None:
        """Raw key."""

    @property
    def value(self) -> bytes | None:
        """Raw value."""


@dataclass(frozen=True)
class Assigned:
    """A partition that is ours from now on. Nothing of its events is delivered before `seek`; its changelog is.

    `start` is the first offset the log still has, `end` the next to be written.
    """

    partition: int
    start: int
    end: int


@dataclass
class Polled:
    """What one poll brought, in this order.

    revoked, assigned: partitions lost, then partitions gained; one may be both.
    states: of assigned partitions, records of the changelog, in order, of committed transactions only.
    restored: partitions whose changelog has been delivered to its end: nothing that an owner before us wrote is
        missing, and nothing more can come.
    records: events of partitions that were sought, consecutive and in order.
    reached: of all partitions that deliver, or of those with records, the offset that is read next: behind the last
        record, and behind what is no record but has an offset (markers of transactions, and what was aborted).
    """

    revoked: Sequence[int] = ()
    assigned: Sequence[Assigned] = ()
    states: Mapping[int, Sequence[Record]] = field(default_factory=dict)
    restored: Sequence[int] = ()
    records: Mapping[int, Sequence[Record]] = field(default_factory=dict)
    reached: Mapping[int, int] = field(default_factory=dict)


class Delivery(NamedTuple):
    """The fate of a published record: `failed` means it may or may not be in the log, and will not be retried."""

    token: Any
    failed: bool
    time: float  # Unix time at which it was learnt


class Change(NamedTuple):
    """A record for the changelog; no value erases the key."""

    partition: int
    key: bytes
    value: bytes | None


class Cause(StrEnum):
    """Why a checkpoint was not written, or may not have been."""

    BROKER = "broker"  # away, too slow, or its answer was lost
    MEMBERSHIP = "membership"  # the group has moved on without us; what we own will be told by `poll`
    REFUSED = "refused"  # the broker answers, and will not have it


class Outcome(NamedTuple):
    """The fate of a checkpoint: why it failed, or None."""

    cause: Cause | None
    message: str = ""


class Transport(Protocol):
    """Events in, lists out, positions kept.

    keyed: whether records carry the user as key.
    partitions, topic_id: of the events topic, known after `open`.
    """

    keyed: bool
    partitions: int
    topic_id: str

    def open(self) -> None:
        """Connect, check the topics, join the group.

        Raises:
            DataError: the topics are not as required.
            TransportError: the broker does not answer.
        """

    def poll(self, timeout_s: float, late: Collection[int] = ()) -> Polled:
        """Wait at most `timeout_s` for records. A broker that is away brings nothing; it is not an error.

        Events of the partitions in `late` come only in the room that those of the others leave.

        Raises:
            DataError: the log no longer has the position asked for.
            FencedError: another process has our identity.
        """

    def hold(self, held: bool) -> None:
        """While held, `poll` brings no events; all else it does bring."""

    def seek(self, partition: int, offset: int) -> None:
        """The next record delivered of this partition is the one at `offset`, or the first after it."""

    def publish(
        self,
        topic: Topic,
        key: bytes | None,
        value: bytes | None,
        token: Any,
        headers: Sequence[tuple[str, bytes]] = (),
        timestamp_ms: int | None = None,
    ) -> None:
        """Hand a record over; `deliveries` will bring the token back exactly once. Does not wait for the log.

        It may stay here until `push` or `flush`.

        Records of one key arrive in the order of the calls, but a failed one may be missing. `timestamp_ms` becomes the
        record's Kafka timestamp, None the time of its push; the log may refuse a record that is too old when it comes.
        """

    def push(self) -> None:
        """All that was published is on its way now. Does not wait."""

    def deliveries(self) -> Sequence[Delivery]:
        """The records whose fate was learnt since the last call."""

    @property
    def in_flight(self) -> int:
        """Records published whose fate is unknown."""

    @property
    def writable(self) -> bool:
        """Whether publishing makes sense now; false while the broker is away. A call may try to reconnect."""

    def flush(self, timeout_s: float) -> None:
        """Wait until nothing is in flight, or the time is over. `deliveries` tells what became of it."""

    def checkpoint(self, changes: Iterable[Change], positions: Mapping[int, int]) -> None:
        """Start to write changes to the changelog and positions to the group: both, or neither.

        Fenced by our membership as it was when the last poll began to look at rebalances: if a partition was taken
        from us since, nothing is written. One at a time. `changes` may be consumed on another thread.
        """

    def checkpointed(self, timeout_s: float = 0) -> Outcome | None:
        """What became of the checkpoint under way, once; None while it is under way. Waits at most `timeout_s`.

        Raises:
            FencedError: another process has our identity.
        """

    @property
    def contact_age_s(self) -> float:
        """Age of our last question to the group that was answered with "you are a member"; infinite before the first.

        At that moment the partitions that `poll` has told us of were ours.
        """

    def home(self, key: bytes) -> int:
        """The partition that producers put events of this key into."""

    def missing_topics(self) -> Sequence[str]:
        """The topics of ours that the log did not have when it was last asked. Does not wait."""

    def lag(self) -> Mapping[int, int]:
        """Events of each partition that was sought, not yet delivered, as far as is known without asking the log."""

    def close(self) -> None:
        """Leave the group and give everything back. What is still in flight may be lost."""
