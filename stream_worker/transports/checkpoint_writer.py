"""The transactional half of a Kafka transport: a checkpoint, on a helper thread, within a deadline.

Exactly-once as in KIP-447: the changelog's records and the group's positions in one transaction, which the group's
coordinator refuses from a member whose generation has passed.
"""

import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

from stream_worker.errors import FencedError
from stream_worker.settings import Settings
from stream_worker.transports.base import Cause, Change, Outcome

DEADLINE_S = 5.0  # of one checkpoint; then its producer is given up
TRANSACTION_TIMEOUT_S = 15.0  # of the broker; a crashed worker's open transaction holds up a restore for so long
BATCH_BYTES = 256 * 1024

Client = TypeVar("Client")


def instance_fenced(settings: Settings) -> FencedError:
    """What another process with our instance id is to the user."""
    return FencedError(f"group instance {settings.group_instance_id!r}: another process has joined under this name")


class CheckpointWriter(ABC, Generic[Client]):
    """Writes one checkpoint at a time; after any failure the client is thrown away, and the next one is new.

    The transactional id is the group's and the instance's, so that a restart ends what the process before it left
    open; without an instance id nobody else can have it, and the membership alone is the fence.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._transactional_id = f"{settings.group}-{settings.group_instance_id or uuid.uuid4().hex}"
        self._client: Client | None = None
        self._thread: threading.Thread | None = None
        self._result: Outcome | Exception | None = None

    def start(self, changes: Iterable[Change], positions: Mapping[int, int], membership: Any) -> None:
        """Begin to write on a helper thread; `membership` is the client's own."""

        def run() -> None:
            try:
                self._result = self._write(changes, positions, membership)
            except Exception as error:
                self._result = error

        assert self._thread is None, "one at a time"
        self._thread = threading.Thread(target=run, name="checkpoint", daemon=True)
        self._thread.start()

    def outcome(self, timeout_s: float) -> Outcome | None:
        """What became of it, once; None while it is under way.

        Raises:
            FencedError: another process has our identity.
        """
        if self._thread is None:
            return None
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return None
        self._thread = None
        result, self._result = self._result, None
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        """Give it back; what is under way may or may not be written."""
        if self._thread is not None:
            self._thread.join(DEADLINE_S)
        self._abandon()

    @abstractmethod
    def _write(self, changes: Iterable[Change], positions: Mapping[int, int], membership: Any) -> Outcome:
        """On the helper thread: one transaction.

        Raises:
            FencedError: another process has our identity.
        """

    @abstractmethod
    def _end(self, client: Client) -> None:
        """Give a client up at once, whatever it does."""

    def _abandon(self) -> None:
        """End the client: what it does after a failure is not to be trusted."""
        if self._client is not None:
            self._end(self._client)
        self._client = None

    def _producer_fenced(self, message: str) -> Outcome:
        """Somebody else has the transactional id, or the broker gave up waiting for us."""
        self._abandon()
        if self._settings.group_instance_id is not None:
            raise FencedError(
                f"transactional id {self._transactional_id!r}: another process uses it, or the transaction took "
                f"more than {TRANSACTION_TIMEOUT_S:g} s: {message}"
            )
        return Outcome(Cause.BROKER, message)  # nobody else has the id
