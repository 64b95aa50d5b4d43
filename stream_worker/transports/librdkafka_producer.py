"""The producing half of the transport through librdkafka."""

import time
from functools import partial
from typing import Any

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from stream_worker.settings import Settings
from stream_worker.transports.base import Delivery
from stream_worker.transports.librdkafka_client import away, client_options
from stream_worker.transports.list_producer import BATCH_BYTES, ListProducer

log = structlog.get_logger(__name__)


def producer_options(settings: Settings) -> dict[str, Any]:
    """The producer's settings."""
    delivery_ms = int(settings.delivery_timeout_s * 1000)
    return client_options(
        settings,
        acks="all",
        enable_idempotence=True,
        linger_ms=0,
        batch_size=BATCH_BYTES,
        delivery_timeout_ms=delivery_ms,
        request_timeout_ms=delivery_ms,
        partitioner="murmur2_random",  # that of Java: a user's lists lie where another client's do
        queue_buffering_max_messages=1_000_000,  # what is in flight is bounded by us
    )


class LibrdkafkaProducer(ListProducer[Producer]):
    """See `ListProducer`. Acknowledgements are learnt when they are asked for; their time is the client's."""

    def __init__(self, settings: Settings) -> None:
        self._unanswered: dict[int, Any] = {}  # tokens, by identity
        super().__init__(settings)

    def deliveries(self) -> list[Delivery]:
        """See `ListProducer`."""
        if self._client is not None:
            self._client.poll(0)
        return super().deliveries()

    def push(self) -> None:
        """See `ListProducer`: the client's own thread has it already."""

    def flush(self, timeout_s: float) -> None:
        """See `ListProducer`."""
        if self._client is not None and (left := self._client.flush(timeout_s)):
            log.warning("records still unacknowledged", records=left)

    def _connect(self, timeout_s: float) -> Producer:
        client = Producer(producer_options(self._settings))
        try:
            client.list_topics(self._settings.recommendations_topic, timeout_s)
        except KafkaException as error:
            raise away(self._settings, error) from error
        return client

    def _hand_over(
        self,
        client: Producer,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        token: Any,
        headers: list[tuple[str, bytes]],
        timestamp_ms: int | None,
    ) -> None:
        self._unanswered[id(token)] = token
        answered = partial(self._answered, token, time.time())
        try:
            client.produce(
                topic, value, key, on_delivery=answered, timestamp=timestamp_ms or 0, headers=list(headers) or None
            )
        except (KafkaException, BufferError) as error:
            del self._unanswered[id(token)]
            self._failed(token, error)

    def _answered(self, token: Any, sent_at: float, error: KafkaError | None, message: Message) -> None:
        if self._unanswered.pop(id(token), None) is None:
            return
        if error is not None:
            self._failed(token, error.str())
        else:
            self._acknowledged((token,), sent_at + (message.latency() or 0.0))

    def _end(self, client: Producer) -> None:
        client.purge(blocking=False)
        client.flush(1)  # tells the fate of what was purged
        for token in self._unanswered.values():  # but for what it could not
            self._failed(token, "the producer was given up")
        self._unanswered = {}
