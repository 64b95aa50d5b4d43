"""The transactional half of the transport through kafka-python."""

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from kafka import KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.errors import (
    CommitFailedError,
    FencedInstanceIdError,
    IllegalStateError,
    InvalidProducerEpochError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    ProducerFencedError,
)

from stream_worker.connection import for_kafka_python
from stream_worker.entrance import made
from stream_worker.settings import KafkaSettings
from stream_worker.transports.base import Cause, Change, Outcome
from stream_worker.transports.checkpoint_writer import (
    BATCH_BYTES,
    DEADLINE_S,
    TRANSACTION_TIMEOUT_S,
    CheckpointWriter,
    instance_fenced,
)
from stream_worker.transports.kafka_append import write

CONNECT_TIMEOUT_S = 2.0


def checkpoint_producer_options(settings: KafkaSettings, transactional_id: str) -> dict[str, Any]:
    """The transactional producer's settings."""
    return {
        **for_kafka_python(settings),
        "bootstrap_timeout_ms": int(CONNECT_TIMEOUT_S * 1000),
        "acks": "all",
        "enable_idempotence": True,
        "transactional_id": transactional_id,
        "transaction_timeout_ms": int(TRANSACTION_TIMEOUT_S * 1000),
        "max_block_ms": int(DEADLINE_S * 1000),
        "delivery_timeout_ms": int(DEADLINE_S * 1000),
        "request_timeout_ms": int(DEADLINE_S * 1000),
        "linger_ms": 0,
        "batch_size": BATCH_BYTES,
        "compression_type": "lz4",
        "retry_backoff_ms": 5,  # with 100 the p99 of a small transaction is 218 ms, with 5 it is 28
        "reconnect_backoff_max_ms": 1000,
        "allow_auto_create_topics": False,
        "metrics_enabled": False,
    }


class KafkaPythonCheckpoints(CheckpointWriter[KafkaProducer]):
    """See `CheckpointWriter`."""

    def _write(self, changes: Iterable[Change], positions: Mapping[int, int], membership: Any) -> Outcome:
        deadline = time.monotonic() + DEADLINE_S
        events = self._settings.events_topic
        offsets = {TopicPartition(events, one): OffsetAndMetadata(offset, "", -1) for one, offset in positions.items()}
        try:
            client = self._client or self._connect()
            client.begin_transaction()
            write(client, self._settings.state_topic, changes, max(0.0, deadline - time.monotonic()))
            # Not through the client's own methods: those wait without an end.
            manager = client._transaction_manager  # noqa: SLF001
            self._await(manager.send_offsets_to_transaction(offsets, membership), deadline)
            self._await(manager.begin_commit(), deadline)
        except KafkaError as error:
            return self._failed(error)
        return Outcome(None)

    def _connect(self) -> KafkaProducer:
        self._client = made(KafkaProducer, checkpoint_producer_options(self._settings, self._transactional_id))
        self._client.init_transactions()
        return self._client

    def _await(self, result: Any, deadline: float) -> None:
        assert self._client is not None
        self._client._sender.wakeup()  # noqa: SLF001
        if not result.wait(timeout_ms=max(0.0, deadline - time.monotonic()) * 1000):
            raise KafkaTimeoutError(f"the transaction took more than {DEADLINE_S:g} s")

    def _failed(self, error: KafkaError) -> Outcome:
        message = f"{type(error).__name__}: {error}"
        if isinstance(error, FencedInstanceIdError):
            raise instance_fenced(self._settings) from error
        if isinstance(error, ProducerFencedError | InvalidProducerEpochError):  # the latter from a partition's leader
            return self._producer_fenced(message)
        if isinstance(error, KafkaTimeoutError | KafkaConnectionError) or error.retriable:
            self._abandon()
            return Outcome(Cause.BROKER, message)
        self._abort()
        self._abandon()
        return Outcome(Cause.MEMBERSHIP if isinstance(error, CommitFailedError) else Cause.REFUSED, message)

    def _abort(self) -> None:
        """So that nobody waits for the end of the transaction; if this fails the broker ends it in its time."""
        if self._client is not None:
            with suppress(KafkaError, IllegalStateError):
                self._await(self._client._transaction_manager.begin_abort(), time.monotonic() + 1)  # noqa: SLF001

    def _end(self, client: KafkaProducer) -> None:
        """At once: offsets of a failed transaction would leak into its next one."""
        client._sender.force_close()  # noqa: SLF001 - there is no public way
        client._sender.join(DEADLINE_S)  # noqa: SLF001
        with suppress(KafkaError):
            client.close(timeout=0)
