"""The producing half of a Kafka transport: idempotent, bounded, and replaced after any failure."""

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

import structlog

from stream_worker.errors import TransportError
from stream_worker.settings import Settings
from stream_worker.transports.base import Delivery

log = structlog.get_logger(__name__)

CONNECT_TIMEOUT_S = 5.0  # at the start
RECONNECT_PAUSE_S = RECONNECT_TIMEOUT_S = 1.0  # between two attempts to make a new client, and of each
BATCH_BYTES = 256 * 1024  # a step's lists in a request or two; with kafka-python's default of 16 KiB in seventeen

Client = TypeVar("Client")


class ListProducer(ABC, Generic[Client]):
    """An idempotent producer that is thrown away after its first failure: what it does then is not to be trusted.

    Raises:
        StreamWorkerError: no broker answers, or not to us.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._done: deque[Delivery] = deque()  # kafka-python's IO thread appends to it
        self.in_flight = 0
        self._broken = False
        self._tried_at = 0.0
        self._client: Client | None = self._connect(CONNECT_TIMEOUT_S)

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        token: Any,
        headers: list[tuple[str, bytes]],
        timestamp_ms: int | None = None,
    ) -> None:
        """Publish; `deliveries` brings the token back exactly once."""
        self.in_flight += 1
        if self._broken or self._client is None:
            self._done.append(Delivery(token, True, time.time()))
            return
        self._hand_over(self._client, topic, key, value, token, headers, timestamp_ms)

    def deliveries(self) -> list[Delivery]:
        """What was learnt since the last call."""
        done = [self._done.popleft() for _ in range(len(self._done))]
        self.in_flight -= len(done)
        return done

    def usable(self) -> bool:
        """Whether sending makes sense; replaces a client that failed, once a broker answers."""
        if not self._broken:
            return True
        self._abandon()
        if time.monotonic() - self._tried_at > RECONNECT_PAUSE_S:
            try:
                self._client = self._connect(RECONNECT_TIMEOUT_S)
            except TransportError as error:
                log.warning("no broker answers the producer, trying again", error=str(error))
            else:
                self._broken = False
                log.info("a new producer is ready")
            self._tried_at = time.monotonic()
        return not self._broken

    @abstractmethod
    def push(self) -> None:
        """What was sent so far is on its way."""

    @abstractmethod
    def flush(self, timeout_s: float) -> None:
        """Wait until nothing is in flight, or the time is over."""

    def close(self) -> None:
        """Give it back; what is in flight may be lost."""
        self._abandon()

    @abstractmethod
    def _connect(self, timeout_s: float) -> Client:
        """A new client, to which a broker has answered. Raises our own errors."""

    @abstractmethod
    def _hand_over(
        self,
        client: Client,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        token: Any,
        headers: list[tuple[str, bytes]],
        timestamp_ms: int | None,
    ) -> None:
        """Publish; exactly once `_acknowledged` or `_failed`, at any time, on any thread."""

    @abstractmethod
    def _end(self, client: Client) -> None:
        """End the client at once; what is in flight fails."""

    def _abandon(self) -> None:
        if self._client is not None:
            self._end(self._client)
        self._client = None

    def _acknowledged(self, tokens: Iterable[Any], at: float) -> None:
        self._done.extend([Delivery(token, False, at) for token in tokens])

    def _failed(self, token: Any, error: object) -> None:
        if not self._broken:
            self._broken = True
            log.warning("a record was not acknowledged; a new producer will replace this one", error=str(error))
        self._done.append(Delivery(token, True, time.time()))
