"""The producing half of the Kafka transport: idempotent, bounded, and replaced after any failure."""

import time
from collections import deque
from functools import partial
from typing import Any

import structlog
from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError

from stream_worker.settings import Settings
from stream_worker.transports.base import Delivery

log = structlog.get_logger(__name__)

REQUEST_TIMEOUT_S = 5.0  # of one question to the broker on the main thread
REBUILD_PAUSE_S = 1.0  # between two attempts to make a new producer
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
        self._client = self._connect()

    def _connect(self) -> KafkaProducer:
        patience_s = 1.0 if self._broken else REQUEST_TIMEOUT_S
        return KafkaProducer(**producer_options(self._settings), bootstrap_timeout_ms=int(patience_s * 1000))

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, token: Any, headers: list[tuple[str, bytes]]
    ) -> None:
        """Publish; `deliveries` brings the token back exactly once."""
        self.in_flight += 1
        if self._broken:
            self._done.append(Delivery(token, True, time.time()))
            return
        try:
            future = self._client.send(topic, value, key, headers)
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
        """Whether sending makes sense; makes a new client if the old one failed and a broker answers."""
        if not self._broken:
            return True
        if time.monotonic() - self._tried_at < REBUILD_PAUSE_S:
            return False
        self._client.close(timeout=0)  # fails what is still in flight, so that it is made anew
        try:
            client = self._connect()
        except KafkaError as error:
            log.warning("no producer, trying again", error=str(error))
        else:
            self._client, self._broken = client, False
            log.info("a new producer is ready")
        self._tried_at = time.monotonic()
        return not self._broken

    def flush(self, timeout_s: float) -> None:
        """Wait until nothing is in flight, or the time is over."""
        try:
            self._client.flush(timeout=timeout_s)
        except KafkaTimeoutError as error:
            log.warning("records still unacknowledged", error=str(error))

    def close(self) -> None:
        """Give it back; what is in flight may be lost."""
        self._client.close(timeout=0)

    def _acknowledged(self, token: Any, _metadata: object) -> None:
        self._done.append(Delivery(token, False, time.time()))

    def _failed(self, token: Any, error: Exception) -> None:
        if not self._broken:
            self._broken = True
            log.warning("a record was not acknowledged; a new producer will replace this one", error=str(error))
        self._done.append(Delivery(token, True, time.time()))
