"""The seam to the log: what the pipeline may ask of a transport, and what it may rely on.

One thread calls all of this. A transport may own threads (the Kafka client does); none of them ever calls back
into the pipeline: what they learn is handed over by `poll` and `deliveries`.
"""

from collections.abc import Mapping, Sequence
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
    """A partition that is ours from now on. Nothing of it is delivered before `seek`.

    `start` is the first offset the log still has, `end` the next to be written, `committed` the group's position,
    None if the group has none.
    """

    partition: int
    start: int
    end: int
    committed: int | None


@dataclass
class Polled:
    """What one poll brought, in this order: partitions lost, partitions gained, records of those that are ours.

    Records of a partition are consecutive and in order. A partition may be lost and gained in the same poll.
    """

    revoked: Sequence[int] = ()
    assigned: Sequence[Assigned] = ()
    records: Mapping[int, Sequence[Record]] = field(default_factory=dict)


class Delivery(NamedTuple):
    """The fate of a published record: `failed` means it may or may not be in the log, and will not be retried."""

    token: Any
    failed: bool
    time: float  # Unix time at which it was learnt


class Commit(NamedTuple):
    """The fate of a commit: the positions, and the cause of its failure or None."""

    positions: Mapping[int, int]
    cause: str | None


class Transport(Protocol):
    """Events in, lists out, positions kept.

    keyed: whether records carry the user as key.
    partitions: number of partitions of the events topic, known after `open`.
    """

    keyed: bool
    partitions: int

    def open(self) -> None:
        """Connect, check the topics, join the group.

        Raises:
            DataError: the topics are not as required.
            TransportError: the broker does not answer.
        """

    def poll(self, timeout_s: float) -> Polled:
        """Wait at most `timeout_s` for records. A broker that is away brings nothing; it is not an error.

        Raises:
            DataError: the log no longer has the position asked for.
        """

    def seek(self, partition: int, offset: int) -> None:
        """The next record delivered of this partition is the one at `offset`, or the first after it."""

    def position(self, partition: int) -> int:
        """The next offset that `poll` reads of a partition, past control records; -1 if it is not ours."""

    def publish(
        self,
        topic: Topic,
        key: bytes | None,
        value: bytes | None,
        token: Any,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        """Hand a record over; `deliveries` will bring the token back exactly once. Does not wait for the log.

        Records of one key arrive in the order of the calls, but a failed one may be missing.
        """

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

    def commit(self, positions: Mapping[int, int]) -> None:
        """Start to commit the next offset to read of these partitions; `commits` tells what became of it."""

    def commits(self) -> Sequence[Commit]:
        """The commits whose fate was learnt since the last call."""

    def commit_now(self, positions: Mapping[int, int], timeout_s: float) -> bool:
        """Commit and wait. Whether the log accepted it."""

    @property
    def contact_age_s(self) -> float:
        """Time since the log last answered this member of the group; infinite before it joined."""

    def lag(self) -> Mapping[int, int]:
        """Records of each assigned partition not yet delivered, as far as is known without asking the log."""

    def close(self) -> None:
        """Leave the group and give everything back. What is still in flight may be lost."""
