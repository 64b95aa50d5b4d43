"""The restoring half of a Kafka transport: reads the changelog of partitions that were assigned, to its end."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

from stream_worker.settings import Settings
from stream_worker.transports.base import Record

FETCH_BYTES = 8 * 1024 * 1024
FETCH_MAX_WAIT_MS = 100

Client = TypeVar("Client")


class ChangelogReader(ABC, Generic[Client]):
    """Reads the partitions it was given, each until its end.

    The end is the high watermark as of a fetch after the assignment: while a transaction of an owner before us is
    undecided, a read_committed position stays below it, so that nothing is missed.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: Client | None = None
        self._numbers: set[int] = set()
        self._seen: set[int] = set()  # all that this client was ever assigned

    def start(self, numbers: Sequence[int]) -> None:
        """Read these from the start."""
        if self._seen & set(numbers):
            # A fetch of before may still be buffered, with a high watermark that is no longer true: read all anew.
            self.close()
        self._numbers |= set(numbers)

    def stop(self, numbers: Sequence[int]) -> None:
        """They are no longer ours."""
        self._numbers -= set(numbers)

    def poll(self, timeout_s: float, max_records: int) -> tuple[Mapping[int, Sequence[Record]], list[int]]:
        """Records by partition, and the partitions that are read to their end."""
        if not self._numbers:
            self.close()
            return {}, []
        records, done = self._read(timeout_s, max_records)
        self._numbers -= set(done)
        return records, done

    def close(self) -> None:
        """Give it back."""
        if self._client is not None:
            self._end(self._client)
        self._client = None
        self._seen = set()

    @abstractmethod
    def _read(self, timeout_s: float, max_records: int) -> tuple[Mapping[int, Sequence[Record]], list[int]]:
        """The same, of `_numbers`; nothing if the broker is away."""

    @abstractmethod
    def _end(self, client: Client) -> None:
        """Disconnect."""
