"""The producing half of the transport through kafka-python."""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import structlog
from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError

from stream_worker.connection import for_kafka_python
from stream_worker.entrance import away, made
from stream_worker.settings import Settings
from stream_worker.transports.kafka_append import Appender
from stream_worker.transports.list_producer import BATCH_BYTES, ListProducer

log = structlog.get_logger(__name__)

JOIN_TIMEOUT_S = 5.0  # of the client's IO thread, when it is given up


def producer_options(settings: Settings) -> dict[str, Any]:
    """The producer's settings."""
    delivery_ms = int(settings.delivery_timeout_s * 1000)
    return {
        **for_kafka_python(settings),
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


class KafkaPythonProducer(ListProducer[KafkaProducer]):
    """See `ListProducer`."""

    _records: Appender

    def push(self) -> None:
        """See `ListProducer`."""
        if self._client is not None:
            self._records.push()

    def flush(self, timeout_s: float) -> None:
        """See `ListProducer`."""
        if self._client is None:
            return
        self._records.push()
        try:
            self._client.flush(timeout=timeout_s)
        except KafkaTimeoutError as error:
            log.warning("records still unacknowledged", error=str(error))

    def _connect(self, timeout_s: float) -> KafkaProducer:
        try:
            timeout = {"bootstrap_timeout_ms": int(timeout_s * 1000)}
            client = made(KafkaProducer, producer_options(self._settings) | timeout)
            self._records = Appender(client, self._settled)
            return client
        except KafkaError as error:
            raise away(self._settings, error) from error

    def _hand_over(
        self,
        client: KafkaProducer,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        token: Any,
        headers: list[tuple[str, bytes]],
        timestamp_ms: int | None,
    ) -> None:
        try:
            self._records.append(token, topic, None, key, value, timestamp_ms, headers)
        except KafkaError as error:
            self._failed(token, error)

    def _settled(self, tokens: Sequence[Any], error: Exception | None) -> None:
        if error is None:
            self._acknowledged(tokens, time.time())
        else:
            for token in tokens:
                self._failed(token, error)

    def _end(self, client: KafkaProducer) -> None:
        """See `ListProducer`.

        close() alone raises while anything is in flight, and then leaves its thread running.
        """
        client._sender.force_close()  # noqa: SLF001 - there is no public way
        client._sender.join(JOIN_TIMEOUT_S)  # noqa: SLF001
        self._records.push()  # they fail, too
        with suppress(KafkaError):
            client.close(timeout=0)
