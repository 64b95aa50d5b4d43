"""What the topics say after a scenario, beside a plain fold of the events.

Nothing here is the worker's: records are decoded as docs/formats.md describes them, users are folded by the oracle.
"""

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from tests.worker.oracle import User, expected, fold_log
from tests.worker.process import Stage, wait_for

POSITION = b"\0position"
EXCLUDING = frozenset({"purchase", "dislike", "hide"})
FULL = 20  # differences that are told


@dataclass
class Verdict:
    """How what is there differs from what must be: users, and what was found."""

    events: int = 0
    users: int = 0
    lost: int = 0  # a state or a list that lacks events
    doubled: int = 0  # a state that counts events twice
    wrong: int = 0  # another difference of a state or a position
    stale: int = 0  # the newest record on `recommendations` is not the list of the last event
    told: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Nothing is wrong."""
        return self.lost == self.doubled == self.wrong == self.stale == 0

    def tell(self, text: str) -> None:
        """Keep a difference for the message."""
        if len(self.told) < FULL:
            self.told.append(text)


ROWS: list[tuple[str, str, str, Verdict, str]] = []  # scenario, client, faults, verdict, remarks


def table() -> str:
    """The results so far, in Markdown."""
    lines = [
        "| scenario | client | faults | events | users | lost | doubled | wrong | stale | |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| {name} | {client} | {faults} | {one.events:,} | {one.users:,} "
        f"| {one.lost} | {one.doubled} | {one.wrong} | {one.stale} | {remarks} |"
        for name, client, faults, one, remarks in ROWS
    ]
    return "\n".join(lines)


def judge(stage: Stage, *, states: bool = True) -> Verdict:
    """Compare. While workers run, only the lists can be asked for: their states are ahead of the topic."""
    folded, ends, count = fold_topic(stage)
    verdict = Verdict(events=count, users=len(folded))
    if states:
        _states(stage, folded, ends, verdict)
    _lists(stage, folded, verdict)
    return verdict


def fold_topic(stage: Stage) -> tuple[dict[str, User], dict[int, int], int]:
    """The users that the events topic makes, the end of each partition, and the number of events."""
    users: dict[str, User] = {}
    ends: dict[int, int] = {}
    for number, records in read(stage, "events_topic").items():
        assert [record.offset for record in records] == list(range(len(records))), "the oracle counts offsets"
        found = fold_log([_event(record) for record in records], 64, 32, EXCLUDING)
        assert not users.keys() & found.keys(), "a user lives in one partition"
        users |= found
        ends[number] = len(records)
    return users, ends, sum(ends.values())


def _event(record: Any) -> dict[str, Any] | None:
    """The event of a record, or None for one that is to be rejected."""
    try:
        event = json.loads(record.value)
    except ValueError:
        return None
    forget = event.get("action") == "forget"
    if "user" not in event or event["user"].encode() != record.key or not (forget or "item" in event):
        return None
    return {"action": "view", "time": record.timestamp, **event, "received": record.timestamp}


def _states(stage: Stage, folded: dict[str, User], ends: dict[int, int], verdict: Verdict) -> None:
    found: dict[str, dict[str, Any]] = {}
    for number, records in read(stage, "state_topic", committed=True).items():
        newest = {record.key: record.value for record in records}
        position = newest.pop(POSITION, None)
        if (position is None and ends[number]) or (position and _position(position) != ends[number]):
            verdict.wrong += 1
            verdict.tell(f"partition {number} ends at {ends[number]}, its position is {position!r}")
        found |= {key.decode(): decode_state(value) for key, value in newest.items() if value is not None}
    for user in folded.keys() | found.keys():
        if user not in found:
            verdict.lost += 1
            verdict.tell(f"{user}: has no state, must be {expected(folded[user])}")
        elif user not in folded:
            verdict.wrong += 1
            verdict.tell(f"{user}: was erased, but has the state {found[user]}")
        else:
            _state(user, found[user], expected(folded[user]), verdict)


def _state(user: str, state: dict[str, Any], must_be: dict[str, Any], verdict: Verdict) -> None:
    listed = state.pop("listed")
    if state == must_be and listed == must_be["applied"]:
        return
    if state["events"] < must_be["events"] or (state == must_be and listed < must_be["applied"]):
        verdict.lost += 1
    elif state["events"] > must_be["events"]:
        verdict.doubled += 1
    else:
        verdict.wrong += 1
    verdict.tell(f"{user}: is {state} listed {listed}, must be {must_be}")


def _lists(stage: Stage, folded: dict[str, User], verdict: Verdict) -> None:
    """The newest record of each user by its place in the topic, whatever offset it names."""
    newest: dict[str, bytes | None] = {}
    for records in read(stage, "recommendations_topic").values():
        newest |= {record.key.decode(): record.value for record in records}
    for user in folded.keys() | newest.keys():
        value = newest.get(user)
        top = json.loads(value) if value else None
        has = (top["offset"], top["events"]) if top else None
        one = folded.get(user)
        must_have = (one.applied, one.events) if one else None
        if has == must_have:
            continue
        if user not in newest:
            verdict.lost += 1
        else:
            verdict.stale += 1
        verdict.tell(f"{user}: the newest list is of (offset, events) {has}, not {must_have}")


def read(stage: Stage, topic: str, *, committed: bool = False) -> dict[int, list[Any]]:
    """Every record of a topic, by partition; with `committed`, of committed transactions only, to the true end."""
    consumer = KafkaConsumer(
        bootstrap_servers=stage.broker.bootstrap, isolation_level="read_committed" if committed else "read_uncommitted",
        enable_auto_commit=False, max_poll_records=5000, max_partition_fetch_bytes=4 << 20, fetch_max_wait_ms=50,
        auto_offset_reset="earliest",
    )  # fmt: skip
    partitions = [TopicPartition(stage.names[topic], number) for number in range(stage.partitions)]
    found: dict[int, list[Any]] = {number: [] for number in range(stage.partitions)}
    try:
        ends = end_offsets(stage, partitions)
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)

        def complete() -> bool:
            for partition, records in consumer.poll(timeout_ms=100).items():
                found[partition.partition] += records
            return all(consumer.position(partition) >= ends[partition] for partition in partitions)

        wait_for(f"the end of {topic}", complete, 120)
    finally:
        consumer.close()
    return found


def end_offsets(stage: Stage, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
    """The next offset of each, as one sees it who reads what is not committed, too."""
    consumer = KafkaConsumer(bootstrap_servers=stage.broker.bootstrap, enable_auto_commit=False)
    try:
        ends: dict[TopicPartition, int] = consumer.end_offsets(partitions)
        return ends
    finally:
        consumer.close()


def _position(value: bytes) -> int:
    assert value[0] == 1
    return int(json.loads(value[1:])["next_offset"])


def decode_state(value: bytes) -> dict[str, Any]:
    """A user's record on the state topic, in the oracle's terms and with `listed`."""
    assert value[0] == 1
    n, m = struct.unpack_from("<HH", value, 2)
    (names_size,) = struct.unpack_from("<I", value, 8)
    events, applied, listed, received = struct.unpack_from("<4q", value, 16)
    fields = _Fields(value, 48)
    items, excluded = fields.take("Q", n), fields.take("Q", m)
    times, places, why = fields.take("I", n), fields.take("H", n), fields.take("H", m)
    rest = value[fields.offset :]
    assert len(rest) == names_size
    names = rest.decode().split("\0")
    return {
        "history": [(item, time, names[place]) for item, time, place in zip(items, times, places, strict=True)],
        "excluded": [(item, names[place]) for item, place in zip(excluded, why, strict=True)],
        "events": events,
        "applied": applied,
        "received": received,
        "listed": listed,
    }


class _Fields:
    """Reads one array after the other."""

    def __init__(self, value: bytes, offset: int) -> None:
        self.value = value
        self.offset = offset

    def take(self, kind: str, count: int) -> tuple[int, ...]:
        """The next `count` numbers of a struct format character."""
        numbers = struct.unpack_from(f"<{count}{kind}", self.value, self.offset)
        self.offset += struct.calcsize(f"<{count}{kind}")
        return numbers


def differences(verdict: Verdict) -> str:
    """For an assertion's message."""
    return "\n".join(_lines(verdict))


def _lines(verdict: Verdict) -> Iterator[str]:
    yield f"lost {verdict.lost}, doubled {verdict.doubled}, wrong {verdict.wrong}, stale {verdict.stale}; such as"
    yield from verdict.told
