"""The producing half of the Kafka transport: idempotent, bounded, and replaced after any failure."""

import gc
import time
from collections import deque
from contextlib import suppress
from functools import partial
from typing import Any

import structlog
from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError

from stream_worker.settings import Settings
from stream_worker.transports.base import Delivery

log = structlog.get_logger(__name__)

REQUEST_TIMEOUT_S = 5.0  # of one question to the broker on the main thread
RECONNECT_PAUSE_S = RECONNECT_TIMEOUT_S = 1.0  # between two attempts to make a new client, and of each
BATCH_BYTES = 64 * 1024  # the default 16 KiB costs a third more CPU a record


def producer_options(settings: Settings) -> dict[str, Any]:
    """The producer's settings."""
    delivery_ms = int(settings.delivery_timeout_s * 1000)
    return {
        "bootstrap_servers": settings.bootstrap.split(","),
        "acks": "all",
        "enable_idempotence": True,
        "linger_ms": 0,
        "batch_size": BATCH_BYTES,
        "delivery_timeout_ms": delivery_ms,
        "request_timeout_ms": delivery_ms,
        "max_block_ms": 1000,
        "reconnect_backoff_max_ms": 1000,
        "allow_auto_create_topics": False,
        "metrics_enabled": False,
    }


class ListProducer:
    """An idempotent producer that is thrown away after its first failure: what it does then is not to be trusted."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._done: deque[Delivery] = deque()  # appended to by the client's IO thread
        self.in_flight = 0
        self._broken = False
        self._tried_at = 0.0
        self._client: KafkaProducer | None = self._connect(REQUEST_TIMEOUT_S)

    def _connect(self, timeout_s: float) -> KafkaProducer:
        return KafkaProducer(**producer_options(self._settings), bootstrap_timeout_ms=int(timeout_s * 1000))

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
        try:
            future = self._client.send(topic, value, key, headers, timestamp_ms=timestamp_ms)
        except KafkaError as error:
            self._failed(token, error)
        else:
            future.add_callback(partial(self._acknowledged, token)).add_errback(partial(self._failed, token))

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
            except KafkaError as error:
                log.warning("no broker answers the producer, trying again", error=str(error))
            else:
                self._broken = False
                log.info("a new producer is ready")
            self._tried_at = time.monotonic()
            gc.collect()  # a client that could not be made leaves its sockets in a cycle of references
        return not self._broken

    def flush(self, timeout_s: float) -> None:
        """Wait until nothing is in flight, or the time is over."""
        if self._client is None:
            return
        try:
            self._client.flush(timeout=timeout_s)
        except KafkaTimeoutError as error:
            log.warning("records still unacknowledged", error=str(error))

    def close(self) -> None:
        """Give it back; what is in flight may be lost."""
        self._abandon()

    def _abandon(self) -> None:
        """End the client at once, if there is one; what is in flight fails, and its tokens come back.

        close() alone raises while anything is in flight, and then leaves its thread running.
        """
        if self._client is None:
            return
        self._client._sender.force_close()  # noqa: SLF001 - there is no public way
        self._client._sender.join(REQUEST_TIMEOUT_S)  # noqa: SLF001
        with suppress(KafkaError):
            self._client.close(timeout=0)
        self._client = None

    def _acknowledged(self, token: Any, _metadata: object) -> None:
        self._done.append(Delivery(token, False, time.time()))

    def _failed(self, token: Any, error: Exception) -> None:
        if not self._broken:
            self._broken = True
            log.warning("a record was not acknowledged; a new producer will replace this one", error=str(error))
        self._done.append(Delivery(token, True, time.time()))
