"""The transactional half of the transport through librdkafka."""

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from stream_worker.transports.base import Cause, Change, Outcome
from stream_worker.transports.checkpoint_writer import (
    BATCH_BYTES,
    DEADLINE_S,
    TRANSACTION_TIMEOUT_S,
    CheckpointWriter,
    instance_fenced,
)
from stream_worker.transports.librdkafka_client import cause, client_options

MOVED_ON = {KafkaError.ILLEGAL_GENERATION, KafkaError.UNKNOWN_MEMBER_ID, KafkaError.REBALANCE_IN_PROGRESS}
FENCED = {KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH}
AWAY = {
    KafkaError._TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._MSG_TIMED_OUT,
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._QUEUE_FULL,
    KafkaError._PURGE_QUEUE,
    KafkaError._PURGE_INFLIGHT,
    KafkaError.REQUEST_TIMED_OUT,
}


class LibrdkafkaCheckpoints(CheckpointWriter[Producer]):
    """See `CheckpointWriter`."""

    def _write(self, changes: Iterable[Change], positions: Mapping[int, int], membership: Any) -> Outcome:
        deadline = time.monotonic() + DEADLINE_S
        events = self._settings.events_topic
        offsets = [TopicPartition(events, number, offset) for number, offset in positions.items()]
        self._lost: list[KafkaError] = []
        try:
            client = self._client or self._connect(deadline)
            client.begin_transaction()
            for one in changes:
                self._produce(client, one, deadline)
            if client.flush(_left(deadline)):
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"not written in {DEADLINE_S:g} s"))
            if self._lost:
                raise KafkaException(self._lost[0])
            client.send_offsets_to_transaction(offsets, membership, _left(deadline))
            client.commit_transaction(_left(deadline))
        except KafkaException as error:
            return self._failed(cause(error))
        return Outcome(None)

    def _connect(self, deadline: float) -> Producer:
        options = client_options(
            self._settings,
            acks="all",
            transactional_id=self._transactional_id,
            transaction_timeout_ms=int(TRANSACTION_TIMEOUT_S * 1000),
            delivery_timeout_ms=int(DEADLINE_S * 1000),
            request_timeout_ms=int(DEADLINE_S * 1000),
            linger_ms=0,
            batch_size=BATCH_BYTES,
            compression_type="lz4",
            delivery_report_only_error=True,
        )
        self._client = client = Producer({**options, "on_delivery": self._delivered})
        client.init_transactions(_left(deadline))
        return client

    def _produce(self, client: Producer, change: Change, deadline: float) -> None:
        while True:
            try:
                client.produce(self._settings.state_topic, change.value, change.key, change.partition)
            except BufferError:  # the client holds no more; wait for room
                if time.monotonic() > deadline:
                    raise KafkaException(KafkaError(KafkaError._QUEUE_FULL)) from None
                client.poll(0.05)
            else:
                return

    def _delivered(self, error: KafkaError | None, _message: object) -> None:
        """Called for failures alone."""
        if error is not None:
            self._lost.append(error)

    def _failed(self, error: KafkaError) -> Outcome:
        message = f"{error.name()}: {error.str()}"
        if error.code() == KafkaError.FENCED_INSTANCE_ID:
            raise instance_fenced(self._settings)
        if error.code() in FENCED:
            return self._producer_fenced(message)
        if error.code() in AWAY or error.retriable():
            self._abandon()
            return Outcome(Cause.BROKER, message)
        self._abort()
        self._abandon()
        return Outcome(Cause.MEMBERSHIP if error.code() in MOVED_ON else Cause.REFUSED, message)

    def _abort(self) -> None:
        """So that nobody waits for the end of the transaction; if this fails the broker ends it in its time."""
        if self._client is not None:
            with suppress(KafkaException):
                self._client.abort_transaction(1)

    def _end(self, client: Producer) -> None:
        client.purge(blocking=False)


def _left(deadline: float) -> float:
    return max(0.001, deadline - time.monotonic())
