"""Forget a user: the record that erases, and the proof that it did, from the topics alone.

The record goes to every partition of the events, so that it finds its user wherever they are. A worker that folds it
drops the state, and writes a tombstone to the state topic and to the lists; the position of its partition does not
pass the record before both are acknowledged (docs/guarantees.md).
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from stream_worker.changelog import POSITION_KEY, decode_position, offsets
from stream_worker.errors import DataError, RejectedEventError, SettingsError
from stream_worker.messages import FORGET, EventDecoder, decode_list, user_id
from stream_worker.settings import ForgetSettings
from stream_worker.transports.base import Change, Record
from stream_worker.transports.kafka_offline import KafkaOffline

ASK_EVERY_S = 0.2

Offsets = Mapping[int, int]  # by partition


@dataclass
class Found:
    """What a topic holds of the user, as a line."""

    topic: str
    records: int = 0
    newest: dict[int, Record] = field(default_factory=dict)  # by partition
    epochs: dict[int, int] = field(default_factory=dict)  # of the state topic, by partition

    def __str__(self) -> str:
        """How many records, and what the newest of each partition is."""
        erased = {number: record.offset for number, record in self.newest.items() if record.value is None}
        alive = {number: record.offset for number, record in self.newest.items() if record.value is not None}
        parts = [f"{self.topic}: {self.records or 'no'} record{'' if self.records == 1 else 's'} of the user"]
        parts += [f"the newest is a tombstone at {_places(erased)}"] if erased else []
        parts += [f"the newest is a value at {_places(alive)}"] if alive else []
        return ", ".join(parts)


def forget_user(settings: ForgetSettings, kafka: KafkaOffline) -> Iterator[str]:
    """Write the record, wait for the workers, prove it. Yields what was done, line by line.

    Raises:
        SettingsError: this is no user's id, or the events are not JSON.
        DataError: the workers did not get there in time, or the user is still there.
    """
    user = _user(settings)
    key, value = user.encode(), _record(settings, user)
    before = {topic: kafka.ends(topic) for topic in (settings.state_topic, settings.recommendations_topic)}
    every = range(kafka.partitions(settings.events_topic))
    start = time.monotonic()
    forgotten = kafka.write(settings.events_topic, [Change(number, key, value) for number in every])
    yield f"{settings.events_topic}: wrote {value.decode()} to {_places(forgotten)}"
    while behind := _behind(kafka.positions(), forgotten):
        if time.monotonic() - start > settings.timeout_s:
            raise DataError(
                f"group {settings.group!r} has not folded {_places(behind)} in {settings.timeout_s:g} s. Is a worker "
                "running? The record stays; look again with --verify."
            )
        time.sleep(ASK_EVERY_S)
    yield f"group {settings.group}: past the record in all partitions after {time.monotonic() - start:.1f} s"
    yield from _prove(settings, kafka, user, forgotten, before, fresh=True)


def verify(settings: ForgetSettings, kafka: KafkaOffline) -> Iterator[str]:
    """Prove it from the topics as they are, read from their beginning. Yields what was found, line by line.

    Raises:
        SettingsError: this is no user's id.
        DataError: the user is still there.
    """
    user = _user(settings)
    seen, forgotten = _events(settings, kafka, user)
    where = f"newest forget at {_places(forgotten)}" if forgotten else "no forget among them"
    yield f"{settings.events_topic}: {seen} records of the user, {where}"
    positions = kafka.positions()
    behind = _behind(positions, forgotten)
    if behind:
        raise DataError(
            f"group {settings.group!r} has not folded {_places(behind)} yet: it is at {_places(positions)}."
        )
    if forgotten:
        yield f"group {settings.group}: past them in all partitions, at {_places(positions)}"
    starts = {topic: kafka.starts(topic) for topic in (settings.state_topic, settings.recommendations_topic)}
    yield from _prove(settings, kafka, user, forgotten, starts, fresh=False)


def _prove(
    settings: ForgetSettings,
    kafka: KafkaOffline,
    user: str,
    forgotten: Offsets,
    since: Mapping[str, Offsets],
    fresh: bool,
) -> Iterator[str]:
    """Look at the two topics that must not hold the user, from these offsets on.

    A state or a list of events after the forget record is of a user who has come back. Without tombstones the user may
    have been forgotten long ago, and the tombstones compacted away; if it was just now (`fresh`), they must be there.
    """
    topic = settings.state_topic
    found = _scan(kafka, topic, since[topic], user)
    epochs = found.epochs
    yield str(found)
    for number, record in found.newest.items():
        if record.value and not _is_after(number, offsets(record.value).applied, forgotten):
            raise DataError(f"topic {topic!r} still holds the user, at {number}@{record.offset}.")
    missing = sorted(forgotten.keys() - found.newest.keys())
    if fresh and missing:
        raise DataError(f"topic {topic!r}: no tombstone came for the partitions {missing}.")

    topic = settings.recommendations_topic
    found = _scan(kafka, topic, since[topic], user)
    yield str(found)
    for number, record in found.newest.items():
        top = decode_list(record.value) if record.value else None
        if top and (top.epoch < epochs.get(top.partition, 0) or not _is_after(top.partition, top.offset, forgotten)):
            raise DataError(f"topic {topic!r} still holds a list of the user, at {number}@{record.offset}.")
    if fresh and not found.newest:
        raise DataError(f"topic {topic!r}: no tombstone came.")
    yield "forgotten"


def _is_after(number: int, offset: int, forgotten: Offsets) -> bool:
    """Whether an event came after the forget record of its partition."""
    return number in forgotten and offset > forgotten[number]


def _scan(kafka: KafkaOffline, topic: str, starts: Offsets, user: str) -> Found:
    found, key = Found(topic), user.encode()
    for number, record in _read(kafka, topic, starts):
        if record.key == key:
            found.records += 1
            found.newest[number] = record
        elif record.key == POSITION_KEY and record.value:
            found.epochs[number] = decode_position(record.value).epoch
    return found


def _events(settings: ForgetSettings, kafka: KafkaOffline, user: str) -> tuple[int, Offsets]:
    """How many records of the user the events topic holds, and the newest forget record of each partition."""
    s = settings
    decode = EventDecoder(
        s.event_user_field, s.event_item_field, s.event_action_field, s.event_time_field, hook=s.event_decoder
    )
    seen, forgotten = 0, {}
    for number, record in _read(kafka, s.events_topic, kafka.starts(s.events_topic)):
        if record.key != user.encode():
            continue
        seen += 1
        try:
            action = decode(record.key, record.value, record.timestamp).action
        except RejectedEventError:
            continue
        if action == FORGET:
            forgotten[number] = record.offset
    return seen, forgotten


def _read(kafka: KafkaOffline, topic: str, starts: Offsets) -> Iterator[tuple[int, Record]]:
    ends = kafka.ends(topic)
    return kafka.read(topic, {number: (start, ends[number]) for number, start in starts.items()})


def _user(settings: ForgetSettings) -> str:
    try:
        return user_id(settings.user)
    except RejectedEventError as error:
        raise SettingsError(f"{error}. Name the user as in the events.") from error


def _record(settings: ForgetSettings, user: str) -> bytes:
    """The event that erases, in the team's own field names."""
    if settings.event_decoder is not None:
        raise SettingsError(
            "--event-decoder: your events are not JSON, so write the forget event yourself, keyed by the user, to "
            f"every partition of {settings.events_topic!r}; then look with --verify."
        )
    event: dict[str, Any] = {}
    for path, text in ((settings.event_user_field, user), (settings.event_action_field, FORGET)):
        *parents, leaf = path.split(".")
        node = event
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = text
    return msgspec.json.encode(event)


def _behind(positions: Offsets, forgotten: Offsets) -> Offsets:
    """The records that a position has not passed."""
    return {number: offset for number, offset in forgotten.items() if positions.get(number, -1) <= offset}


def _places(offsets_by_partition: Offsets) -> str:
    return ", ".join(f"{number}@{offset}" for number, offset in sorted(offsets_by_partition.items())) or "nothing"
