"""Random records of every kind on a world's log, and whether its workers made of them what the oracle makes."""

import random
import string
from typing import Any

import msgspec

from stream_worker.messages import decode_list
from stream_worker.pipeline import Pipeline
from stream_worker.transports.base import Topic
from tests.worker.oracle import User, expected, fold_log
from tests.worker.world import START_MS, World, exact

ACTIONS = ("view", "view", "view", "click", "purchase", "hide", "poke")
REJECTS: tuple[bytes | None, ...] = (None, b"", b"{", b"[1]", b'{"user": "u1"}', b'{"item": "i1"}', b"\xff\x00")


class Traffic:
    """Appends to the world's log, and remembers what it appended as the oracle wants it.

    Args:
        world: whose log.
        users: how many there are; each lives in the partition of its number, and has a name that belongs there.
    """

    def __init__(self, world: World, users: int = 9) -> None:
        self._world = world
        self._users = users
        self.told: list[list[dict[str, Any] | None]] = [[] for _ in range(world.log.partitions)]
        self._numbers: dict[str, int] = {}  # by name

    def name(self, user: int) -> str:
        """The user's name: `u7`, or `u7` and a letter."""
        home = self._world.transport.home
        return next(
            name
            for letter in ("", *string.ascii_letters)
            if home((name := f"u{user}{letter}").encode()) == user % len(self.told)
        )

    def event(self, user: int, item: int, action: str, second: int) -> None:
        """An event `second` seconds into 2026; whether it is late depends on those before."""
        self._append(user, {"item": f"i{item}", "action": action, "time": START_MS + second * 1000})

    def forget(self, user: int) -> None:
        """Erase a user."""
        self._append(user, {"action": "forget", "time": START_MS})

    def repeat(self, user: int, back: int) -> None:
        """A record of this user's partition once more."""
        told = self.told[user % len(self.told)]
        event = told[-1 - back % len(told)] if told else None
        if event is not None:
            again: dict[str, Any] = {name: event[name] for name in ("item", "action", "time") if name in event}
            self._append(self._numbers[event["user"]], again)

    def reject(self, user: int, value: bytes | None) -> None:
        """A record that is no event."""
        number = user % len(self.told)
        self._world.log.append(value, self.name(user).encode(), number, self._now_ms(number))
        self.told[number].append(None)

    def append(self, rng: random.Random, count: int) -> None:
        """Some of all."""
        for _ in range(count):
            user, item, second = rng.randrange(self._users), rng.randrange(12), rng.randrange(40)
            match rng.randrange(12):
                case 0:
                    self.forget(user)
                case 1:
                    self.reject(user, rng.choice(REJECTS))
                case 2:
                    self.repeat(user, rng.randrange(10))
                case _:
                    self.event(user, item, rng.choice(ACTIONS), second)

    def users(self, number: int, end: int | None = None) -> dict[str, User]:
        """The oracle's users of a partition, after its records before `end`."""
        s = self._world.settings
        return fold_log(self.told[number][:end], s.history_length, s.excluded_length, s.excluding)

    def check(self, *pipelines: Pipeline) -> None:
        """Assert that every state, every user's newest list and the committed positions are as the log says."""
        world = self._world
        owners = {number: pipeline for pipeline in pipelines or [world.pipeline] for number in pipeline.owned}
        newest = {record.key: record.value for record in world.log.topics[Topic.RECOMMENDATIONS]}
        wanted: dict[str, User] = {}
        for number, records in enumerate(self.told):
            users = self.users(number)
            wanted |= users
            found = exact(owners[number].owned[number].state, owners[number].actions)
            assert found == {name: expected(user) for name, user in users.items()}
            assert world.log.committed.get(number, 0) == len(records)
        lists = {key.decode(): decode_list(value) for key, value in newest.items() if key and value}
        assert {name: (top.offset, top.events) for name, top in lists.items()} == {
            name: (user.applied, user.events) for name, user in wanted.items()
        }

    def check_lists(self) -> None:
        """Assert that each list ever published was true when it was made.

        But of users who were forgotten later: when their events are read again, what was before them is erased already.
        """
        for number, records in enumerate(self.told):
            forgotten = {one["user"]: offset for offset, one in enumerate(records) if one and one["action"] == "forget"}
            lists = {(top.offset, top.user): top for top in self._world.lists() if top.partition == number}
            for (offset, name), top in lists.items():
                if offset > forgotten.get(name, -1):
                    user = self.users(number, offset + 1)[name]
                    assert (top.offset, top.events) == (user.applied, user.events)

    def check_durable(self) -> None:
        """Assert that the next process finds the same, without reading an event or making a list."""
        lists = len(self._world.log.topics[Topic.RECOMMENDATIONS])
        self._world.restart()
        self._world.finish()
        self.check()
        assert self._world.metrics.total("events") == 0
        assert len(self._world.log.topics[Topic.RECOMMENDATIONS]) == lists

    def _append(self, user: int, fields: dict[str, Any]) -> None:
        name, number = self.name(user), user % len(self.told)
        self._numbers[name] = user
        received = self._now_ms(number)
        event = {"user": name, **fields}
        self._world.log.append(msgspec.json.encode(event), name.encode(), number, received)
        self.told[number].append({**event, "received": received})

    def _now_ms(self, number: int) -> int:
        return START_MS + 1000 + len(self.told[number])
