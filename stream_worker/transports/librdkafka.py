"""Kafka through librdkafka (confluent-kafka): as `kafka.py`, for less CPU a record.

The client's threads never call us: rebalances and acknowledgements come out of its calls, on the main thread. What the
group gives us and what is fetched are two things here: a partition is fetched from when it is sought, so that no
position is ever the client's choice. The client does not join again before a rebalance has been answered, which
happens in `poll`; so a membership never is of later than the partitions that we take for ours.
"""

import struct
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import kafka.errors
import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from stream_worker.entrance import forbidden
from stream_worker.settings import Settings
from stream_worker.transports.base import Record
from stream_worker.transports.checkpoint_writer import instance_fenced
from stream_worker.transports.group import (
    FETCH_MAX_WAIT_MS,
    LATE_RECORDS_BESIDE,
    REQUEST_TIMEOUT_S,
    Bounds,
    GroupTransport,
    Membership,
)
from stream_worker.transports.librdkafka_changelog import LibrdkafkaChangelog
from stream_worker.transports.librdkafka_checkpoint import LibrdkafkaCheckpoints
from stream_worker.transports.librdkafka_client import away, check_version, client_options, fields
from stream_worker.transports.librdkafka_producer import LibrdkafkaProducer
from stream_worker.transports.librdkafka_record import ClientRecord, take
from stream_worker.transports.librdkafka_watch import Watch

log = structlog.get_logger(__name__)

# Fresh events lie behind what was fetched of a backlog: it is taken out of the client whole, and lines up here.
LINE_RECORDS = 20_000  # of one fetch
FULL_RECORDS, ROOM_RECORDS = 5000, 1000  # a partition whose line is longer is not fetched, until it is so short
FORBIDDEN = {KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED}
MEMBERSHIP_MAGIC = b"CGMDv2:"


def consumer_options(settings: Settings) -> dict[str, Any]:
    """The consumer's settings."""
    s = settings
    static = {} if s.group_instance_id is None else {"group_instance_id": s.group_instance_id}
    return client_options(
        s,
        group_id=s.group,
        **static,
        enable_auto_commit=False,
        enable_auto_offset_store=False,
        auto_offset_reset="error",  # where to start is ours to decide, always
        isolation_level="read_committed",
        partition_assignment_strategy="cooperative-sticky",
        session_timeout_ms=int(s.session_timeout_s * 1000),
        heartbeat_interval_ms=int(s.session_timeout_s * 250),
        max_poll_interval_ms=max(60_000, int(s.session_timeout_s * 2000)),
        fetch_min_bytes=1,
        fetch_wait_max_ms=FETCH_MAX_WAIT_MS,
        fetch_error_backoff_ms=100,
        fetch_queue_backoff_ms=10,  # with the default a consumer whose queue was full for a moment waits for a second
        queued_min_messages=2 * s.max_poll_records,
    )


class LibrdkafkaTransport(GroupTransport):
    """See `Transport`."""

    def __init__(self, settings: Settings) -> None:
        check_version()
        super().__init__(settings, LibrdkafkaChangelog(settings), LibrdkafkaCheckpoints(settings))
        self._consumer: Consumer | None = None
        self._watch: Watch | None = None
        self._lines: dict[int, list[Record]] = {}  # of partitions that are fetched: what was, and is not delivered
        self._full: set[int] = set()
        self._ends: dict[int, int] = {}  # where the client last met the end of what is decided

    def _connect(self) -> None:
        s = self._settings
        self._producer = LibrdkafkaProducer(s)
        self._watch = Watch(s)
        try:
            self._consumer = Consumer(consumer_options(s) | {"enable.partition.eof": True})
            self._consumer.subscribe(
                [s.events_topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
            )
        except KafkaException as error:
            raise away(s, error) from error

    def _disconnect(self) -> None:
        if self._consumer is not None:
            try:
                self._consumer.close()
            except (KafkaException, RuntimeError) as error:
                log.warning("the consumer did not close in order", error=str(error))
        if self._watch is not None:
            self._watch.close()
        self._consumer = self._watch = None

    # -- the group -----------------------------------------------------------------------------------------------

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.incremental_assign([])  # ours from now on; fetched when it is sought
        self._rebalances.append((True, [one.partition for one in partitions]))

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        fetched = [one for one in partitions if one.partition in self._lines]
        consumer.incremental_unassign(fetched)
        for one in fetched:
            del self._lines[one.partition]
            self._ends.pop(one.partition, None)
        self._full -= {one.partition for one in partitions}
        self._rebalances.append((False, [one.partition for one in partitions]))

    def _ask_membership(self) -> Membership:
        native = self._open_consumer.consumer_group_metadata()
        # There is no public way to its generation.
        assert native.startswith(MEMBERSHIP_MAGIC), "confluent-kafka has changed what group metadata look like"
        (generation,) = struct.unpack_from("=i", native, len(MEMBERSHIP_MAGIC))
        _, member_id, _ = native[len(MEMBERSHIP_MAGIC) + 4 :].split(b"\0", 2)
        return Membership(member_id.decode(), generation, bool(member_id) and generation >= 0, native)

    def _halt(self, numbers: Sequence[int]) -> Sequence[int]:
        self._pause([number for number in numbers if number in self._lines])
        for number in numbers:
            if number in self._lines:
                self._lines[number] = []
        return numbers

    @property
    def contact_age_s(self) -> float:
        """See `Transport`."""
        if self._watch is None:
            return float("inf")
        return self._watch.contact_age_s(self._member_id)

    def missing_topics(self) -> Sequence[str]:
        """See `Transport`."""
        return self._watch.missing() if self._watch is not None else ()

    def _bounds(self, numbers: Sequence[int]) -> Bounds | None:
        consumer, patience, topic = self._open_consumer, REQUEST_TIMEOUT_S, self._settings.events_topic
        try:
            found = consumer.list_topics(topic, patience).topics[topic].partitions
            led = [number for number in numbers if number in found and found[number].leader >= 0]
            bounds = {number: consumer.get_watermark_offsets(self._partition(number), patience) for number in led}
        except KafkaException as error:
            log.warning("where partitions end is not known yet, asking again", error=str(error))
            return None
        topic_id = self._topic_id()
        if not topic_id:
            return None
        starts, ends = ({number: both[side] for number, both in bounds.items()} for side in (0, 1))
        return Bounds(starts, ends, topic_id)

    def _topic_id(self) -> str:
        """Empty if nobody answers."""
        assert self._watch is not None
        try:
            return self._watch.topic_id()
        except kafka.errors.KafkaError as error:
            log.warning("the topic's id is not known yet, asking again", error=str(error))
            return ""

    # -- events --------------------------------------------------------------------------------------------------

    def seek(self, partition: int, offset: int) -> None:
        """See `Transport`."""
        if partition not in self._ours:
            return
        consumer, place = self._open_consumer, TopicPartition(self._settings.events_topic, partition, offset)
        if partition in self._lines:
            consumer.seek(place)
            self._full.discard(partition)
        else:
            consumer.incremental_assign([place])
        self._lines[partition] = []
        self._ends.pop(partition, None)
        self._next[partition] = offset
        # Told in both cases: a pause of before, even of before the partition was taken from us, is not forgotten.
        (self._pause if self._held else self._resume)([partition])

    def hold(self, held: bool) -> None:
        """See `Transport`."""
        if held == self._held:
            return
        self._held = held
        fetched = self._lines.keys() - self._full
        if held:
            self._pause(fetched)
        else:
            self._resume(fetched)

    def _poll_events(self, timeout_s: float, late: Collection[int]) -> Mapping[int, Sequence[Record]]:
        most = self._settings.max_poll_records
        behind = [number for number in late if number in self._next]
        mixed = 0 < len(behind) < len(self._next)
        waiting = sum(map(len, self._lines.values())) if not self._held else 0
        messages = take(
            self._open_consumer, LINE_RECORDS if mixed else max(1, most - waiting), 0 if waiting else timeout_s
        )
        self._line_up(messages)
        if self._held:
            return {}
        fresh = [number for number in self._lines if number in self._next and not (mixed and number in behind)]
        batches: dict[int, Sequence[Record]] = {}
        most = self._deliver(fresh, most, batches)
        if mixed:
            self._deliver(behind, min(most, LATE_RECORDS_BESIDE), batches)
        self._pace()
        return batches

    def _line_up(self, messages: Sequence[Message]) -> None:
        lines = self._lines
        for message in messages:
            line = lines.get(message.partition())  # type: ignore[arg-type]
            if message.error() is not None:
                self._follow_error(message)
            elif line is not None:  # else taken from us meanwhile
                line.append(ClientRecord.of(message))

    def _deliver(self, numbers: Collection[int], most: int, batches: dict[int, Sequence[Record]]) -> int:
        """Up to so many of these; returns the room that is left."""
        for number in numbers:
            line = self._lines[number]
            if line and most > 0:
                batches[number] = line[:most]
                self._lines[number] = line[most:]
                most -= len(batches[number])
        return most

    def _pace(self) -> None:
        """Fetch nothing of a partition of which enough is waiting."""
        full = {number for number, line in self._lines.items() if len(line) > FULL_RECORDS} - self._full
        room = {number for number in self._full if len(self._lines[number]) < ROOM_RECORDS}
        self._full = (self._full | full) - room
        self._pause(full)
        self._resume(room)

    def _follow_error(self, message: Message) -> None:
        error, number = message.error(), message.partition()
        assert error is not None
        if error.code() == KafkaError._PARTITION_EOF:
            if number in self._lines:
                self._ends[number] = message.offset() or 0
            return
        if error.code() == KafkaError._AUTO_OFFSET_RESET and number in self._next:
            raise self._out_of_range(error.str(), self._topic_id())
        if error.code() in (KafkaError.FENCED_INSTANCE_ID, KafkaError._FATAL):
            raise instance_fenced(self._settings)
        if error.code() in FORBIDDEN:
            raise forbidden(self._settings, error.str())
        log.warning("poll failed, trying again", **fields(message))

    def _position(self, number: int) -> int:
        return 0 if self._lines.get(number) else self._ends.get(number, 0)

    def _end(self, number: int) -> int | None:
        _, end = self._open_consumer.get_watermark_offsets(self._partition(number), cached=True)
        return end if end >= 0 else None

    def _pause(self, numbers: Collection[int]) -> None:
        if partitions := [self._partition(number) for number in numbers]:
            self._open_consumer.pause(partitions)

    def _resume(self, numbers: Collection[int]) -> None:
        if partitions := [self._partition(number) for number in numbers]:
            self._open_consumer.resume(partitions)

    def _partition(self, number: int) -> TopicPartition:
        return TopicPartition(self._settings.events_topic, number)

    @property
    def _open_consumer(self) -> Consumer:
        assert self._consumer is not None, "open() comes first"
        return self._consumer
