"""Whatever bytes come, nothing crashes: each record is folded or rejected, and counted once."""

import gc
import json
import os
import random
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

from stream_worker.bundle import Bundle
from stream_worker.rejects import MAX_REJECTED_BYTES
from stream_worker.transports.base import Topic
from stream_worker.transports.memory import MemoryRecord
from tests.worker.world import START_MS, World

PAYLOADS = 1_000_000 if os.environ.get("CHAOS") == "long" else 50_000
CHUNK = 2000
WARM_UP = 5 * CHUNK
MOST_GROWTH_BYTES = 150_000  # three a payload in the short form, a seventh of one in the long
ACTION_BYTES = 250  # a name that was never seen before is interned, for good
USERS = 200
ODD = (
    "",
    "*",
    "\x00",
    "\x7f",
    "\x85",
    "é" * 128,
    "é" * 129,
    "x" * 256,
    "x" * 257,
    "\ud800",
    "\u202e",
    "🦆" * 64,
    "a b",
)
ACTIONS: tuple[Any, ...] = (
    None,
    "view",
    "view",
    "purchase",
    "forget",
    "poke",
    "ünï",
    "x" * 64,
    "x" * 65,
    "",
    "a\x00b",
    7,
    [],
    {},
)
TIMES: tuple[Any, ...] = (
    None,
    START_MS,
    START_MS + 999,
    0,
    -1,
    10**12,
    2**63,
    2**64,
    10**400,
    1.5e12,
    1e308,
    True,
    "now",
    "2026",
    [],
)
BLANK = MemoryRecord(-1, 0, None, None)

Payload = tuple[bytes | None, bytes | None]


def dumps(value: Any) -> bytes:
    """JSON as others write it: NaN, lone surrogates, integers of any length."""
    return json.dumps(value).encode()


def event(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A good one, mostly."""
    user = f"u{rng.randrange(USERS)}"
    fields = {
        "user": user,
        "item": f"i{rng.randrange(80)}",
        "action": rng.choice(("view", "click", "purchase")),
        "time": START_MS + rng.randrange(300) * 1000,
    }
    return user, fields


def good(rng: random.Random) -> Payload:
    user, fields = event(rng)
    return user.encode(), dumps(fields)


def odd_field(rng: random.Random) -> Payload:
    user, fields = event(rng)
    name = rng.choice(list(fields))
    fields[name] = rng.choice({"action": ACTIONS, "time": TIMES}.get(name, ODD))
    if name == "user" and rng.random() < 0.8:
        user = fields["user"]
    return user.encode(errors="replace"), dumps(fields)


def absent_field(rng: random.Random) -> Payload:
    user, fields = event(rng)
    del fields[rng.choice(list(fields))]
    return user.encode(), dumps(fields)


def wrong_type(rng: random.Random) -> Payload:
    user, fields = event(rng)
    fields[rng.choice(list(fields))] = rng.choice([None, 1, -7, 2.5, True, [], {}, [[1]], {"user": "u1"}, float("nan")])
    return user.encode(), dumps(fields)


def truncated(rng: random.Random) -> Payload:
    key, value = good(rng)
    assert value
    return key, value[: rng.randrange(len(value))]


def mutated(rng: random.Random) -> Payload:
    key, value = good(rng)
    spoilt = bytearray(value or b"")
    for _ in range(rng.randrange(1, 4)):
        spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
    return key, bytes(spoilt)


def noise(rng: random.Random) -> Payload:
    return rng.randbytes(rng.randrange(20)), rng.randbytes(rng.randrange(200))


def nulls(rng: random.Random) -> Payload:
    key, value = good(rng)
    return rng.choice([(None, value), (key, None), (None, None), (b"", value), (key, b""), (b"\xff", value)])


def other_json(rng: random.Random) -> Payload:
    value = rng.choice([b"null", b"[]", b"{}", b'""', b"0", b"NaN", b" ", b"\xef\xbb\xbf{}", b"{}{}", b'{"user":}'])
    return b"u1", value


def twice_the_field(rng: random.Random) -> Payload:
    user, fields = event(rng)
    return user.encode(), b'{"user": "u0", ' + dumps(fields)[1:]


def huge(rng: random.Random) -> Payload:
    user, fields = event(rng)
    match rng.randrange(5):
        case 0:
            fields["item"] = "x" * rng.randrange(1_100_000)
        case 1:
            fields["more"] = "x" * 1_000_000
        case 2:
            return user.encode(), b"[" * 100_000
        case 3:
            return user.encode(), b'{"user": ' * 50_000 + b"1" + b"}" * 50_000
        case _:
            return user.encode(), b'{"user": %s, "item": "i1"}' % (b"1" * 20_000)
    return user.encode(), dumps(fields)


KINDS: tuple[Callable[[random.Random], Payload], ...] = (
    good, good, good, odd_field, absent_field, wrong_type, truncated, mutated, mutated, noise, nulls, other_json,
    twice_the_field,
)  # fmt: skip


def payload(rng: random.Random) -> Payload:
    """One record's key and value."""
    return huge(rng) if rng.random() < 0.002 else rng.choice(KINDS)(rng)


class Intake:
    """Feeds payloads to a world in chunks, and takes from its log what has been served.

    Every record that was rejected must be one that was sent, with its bytes.
    """

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world = world
        self._rng = rng
        self.sent = self.rejected = 0

    def feed(self, count: int) -> None:
        for _ in range(count // CHUNK):
            chunk = [payload(self._rng) for _ in range(CHUNK)]
            for key, value in chunk:
                self._world.log.append(value, key)
            self._world.settle()
            self._compare(chunk)
            self.sent += len(chunk)
            self._trim()

    def _compare(self, chunk: list[Payload]) -> None:
        offsets = set()
        for record in self._world.log.topics[Topic.REJECTED]:
            offset = int(dict(record.headers)["__connect.errors.offset"])
            key, value = chunk[offset - self.sent]
            assert record.key == key
            assert record.value == (value or b"")[: MAX_REJECTED_BYTES - len(key or b"")]
            offsets.add(offset)
        assert len(offsets) == len(self._world.log.topics[Topic.REJECTED])
        self.rejected += len(offsets)

    def _trim(self) -> None:
        log = self._world.log
        log.events[0] = [BLANK] * self.sent
        log.changelog[0].clear()
        for records in log.topics.values():
            records.clear()


def test_random_payloads_crash_nothing_and_each_is_counted_once(popularity: Bundle, seed: int) -> None:
    world = World(popularity, max_reject_share=1, history_length=8, excluded_length=4, max_poll_records=500)
    intake = Intake(world, random.Random(seed))
    intake.feed(WARM_UP)
    gc.collect()
    tracemalloc.start()
    intake.feed(PAYLOADS - WARM_UP)
    gc.collect()
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    total = world.metrics.total
    folded = total("events") + total("duplicates") + total("evicted")
    assert intake.sent == PAYLOADS
    assert folded + total("rejected") == PAYLOADS
    assert total("rejected") == intake.rejected
    assert 0.2 < folded / PAYLOADS < 0.8  # both happen
    assert world.log.committed == {0: PAYLOADS}
    grown -= sys.getsizeof(world.log.events[0])  # the trimmed log is no leak
    assert grown < MOST_GROWTH_BYTES + ACTION_BYTES * len(world.pipeline.actions.names)
