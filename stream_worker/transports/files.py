"""Files as a log: JSON lines of events in, JSON lines of lists out. No Kafka; for `replay`.

One partition, offset = line number from 0, no keys and no Kafka timestamps: an event's own `time` stands for it.
"""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from stream_worker.errors import DataError
from stream_worker.messages import NO_TIMESTAMP
from stream_worker.transports.base import Assigned, Change, Delivery, Outcome, Polled, Topic


@dataclass(frozen=True, slots=True)
class Line:
    """A line as a record."""

    offset: int
    value: bytes
    key: bytes | None = None
    timestamp: int = NO_TIMESTAMP


class FileTransport:
    """Reads `events` once from the start; `exhausted` tells that all lines were delivered.

    Args:
        events: JSON lines.
        out: lists; rejected events go beside it, with `.rejected` added to its name.
        max_poll_records: most lines of one poll.
    """

    keyed = False
    partitions = 1
    topic_id = ""

    def __init__(self, events: Path, out: Path, max_poll_records: int = 500) -> None:
        self._paths = (events, out, out.with_name(out.name + ".rejected"))
        self._max_poll_records = max_poll_records
        self._offset = 0
        self._open = False
        self.exhausted = False
        self._assigned = self._sought = self._held = False
        self._deliveries: list[Delivery] = []

    def open(self) -> None:
        """Open the files.

        Raises:
            DataError: one of them cannot be opened.
        """
        try:
            self._events: BinaryIO = self._paths[0].open("rb")
            self._outs: dict[Topic, BinaryIO] = {
                Topic.RECOMMENDATIONS: self._paths[1].open("wb"),
                Topic.REJECTED: self._paths[2].open("wb"),
            }
        except OSError as error:
            raise DataError(f"{error.filename}: {error.strerror}.") from error
        self._open = True

    def poll(self, timeout_s: float, late: Collection[int] = ()) -> Polled:
        """See `Transport`; blank lines count but are not delivered."""
        if not self._assigned:
            self._assigned = True
            return Polled(assigned=[Assigned(0, 0, 0)], restored=[0])
        lines: list[Line] = []
        if not self._sought or self._held:
            return Polled()
        while len(lines) < self._max_poll_records and not self.exhausted:
            value = self._events.readline()
            if not value:
                self.exhausted = True
            elif value.strip():
                lines.append(Line(self._offset, value))
            self._offset += 1
        return Polled(records={0: lines}, reached={0: lines[-1].offset + 1}) if lines else Polled()

    def seek(self, partition: int, offset: int) -> None:
        """See `Transport`; a file is read once, from the start."""
        assert offset == self._offset == 0
        self._sought = True

    def hold(self, held: bool) -> None:
        """See `Transport`."""
        self._held = held

    def publish(
        self,
        topic: Topic,
        key: bytes | None,
        value: bytes | None,
        token: Any,
        headers: Sequence[tuple[str, bytes]] = (),
        timestamp_ms: int | None = None,
    ) -> None:
        """See `Transport`; a rejected event is written with its reasons, an erased user's list as null."""
        if topic is Topic.REJECTED:
            reasons = {name: text.decode() for name, text in headers}
            value = msgspec.json.encode(
                {"value": (value or b"").decode(errors="replace").rstrip("\n"), "headers": reasons}
            )
        elif value is None:
            value = msgspec.json.encode({"user": (key or b"").decode(), "items": None})
        self._outs[topic].write(value + b"\n")
        self._deliveries.append(Delivery(token, False, time.time()))

    def push(self) -> None:
        """See `Transport`: nothing stays behind."""

    def deliveries(self) -> Sequence[Delivery]:
        """See `Transport`."""
        done, self._deliveries = self._deliveries, []
        return done

    @property
    def in_flight(self) -> int:
        """See `Transport`; a write is done when it returns."""
        return 0

    @property
    def writable(self) -> bool:
        """See `Transport`."""
        return True

    def flush(self, timeout_s: float) -> None:
        """See `Transport`."""
        for out in self._outs.values():
            out.flush()

    def checkpoint(self, changes: Iterable[Change], positions: Mapping[int, int]) -> None:
        """See `Transport`; there is nothing to keep: a replay always starts from the first line."""

    def checkpointed(self, timeout_s: float = 0) -> Outcome:
        """See `Transport`."""
        return Outcome(None)

    @property
    def contact_age_s(self) -> float:
        """See `Transport`."""
        return 0.0

    def home(self, key: bytes) -> int:
        """See `Transport`."""
        return 0

    def missing_topics(self) -> Sequence[str]:
        """See `Transport`."""
        return ()

    def lag(self) -> Mapping[int, int]:
        """See `Transport`; how long a file is, is not known before its end."""
        return {0: 0}

    def close(self) -> None:
        """Close the files."""
        if self._open:
            for file in (self._events, *self._outs.values()):
                file.close()
        self._open = False
