"""The load: who clicks on what, as records of the events topic, and how fast they are produced."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from kafka import KafkaProducer
from numpy.typing import NDArray

from benchmarks import states
from benchmarks.errors import BenchmarkError
from stream_worker.messages import item_hash
from stream_worker.state import Actions, Copy

ZIPF = 1.1
FIRST_TIME_MS = 1_577_836_800_000  # 2020; an event a second from there, so that no event repeats another
CHUNK = 10_000  # events between two waits for their acknowledgement; users of a transaction


class Message(NamedTuple):
    """A record of the events topic."""

    key: bytes
    value: bytes


class Load:
    """Users and items drawn by Zipf's law, each in a shuffled order of popularity.

    Args:
        users: how many there are; their ids have 12 bytes.
        items: the catalogue.
        actions: name -> share of the events; "purchase" excludes its item.
        seed: the same seed gives the same events.
        users_zipf: the exponent for users; 0 draws all of them evenly.
    """

    def __init__(
        self, users: int, items: Sequence[str], actions: Mapping[str, float], seed: int, users_zipf: float = ZIPF
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._users = [f"user{number:08d}" for number in self._rng.permutation(users)]
        self._items = [items[row] for row in self._rng.permutation(len(items))]
        self._users_cdf, self._items_cdf = _zipf_cdf(users, users_zipf), _zipf_cdf(len(items), ZIPF)
        self._item_hashes = np.array([item_hash(item) for item in self._items], np.uint64)
        shares = np.array(list(actions.values()))
        self._actions_cdf = np.cumsum(shares / shares.sum())
        self.actions = Actions(frozenset({"purchase"}))
        for name in actions:
            self.actions.code(name)  # 0, 1, …
        self._time_ms = FIRST_TIME_MS

    def states(self, length_B: NDArray[np.int32]) -> Iterator[Copy]:
        """The state of every user after so many events, some users at a time, all within the same few days."""
        begin_ms = self._time_ms
        for first in range(0, len(length_B), CHUNK):
            part_B = length_B[first : first + CHUNK]
            shape = len(part_B), int(part_B.max())
            seconds_BH = np.arange(1, shape[0] * shape[1] + 1).reshape(shape[::-1]).T + begin_ms // 1000
            self._time_ms = max(self._time_ms, begin_ms + seconds_BH.size * 1000)
            yield states.state(
                self._users[first : first + CHUNK],
                self._item_hashes[self._draw(self._items_cdf, seconds_BH.size)].reshape(shape),
                seconds_BH.astype(np.uint32),
                self._draw(self._actions_cdf, seconds_BH.size).astype(np.uint16).reshape(shape),
                part_B,
                np.array(self.actions.excluding),
            )

    def events_of(self, state: Copy) -> Iterator[Message]:
        """The events that lead to a state of which all users have as many."""
        names = dict(zip(self._item_hashes.tolist(), self._items, strict=True))
        h = state.histories
        for items_B, times_B, actions_B in zip(h.items_BH.T, h.times_BH.T, h.actions_BH.T, strict=True):
            rows = zip(state.users, items_B.tolist(), times_B.tolist(), actions_B.tolist(), strict=True)
            for user, item, time_s, action in rows:
                yield message(user, names[item], self.actions.names[action], time_s * 1000)

    def imports_of(self, state: Copy) -> Iterator[Message]:
        """A whole history in one record, for peers that have no state topic of ours to begin with."""
        names = dict(zip(self._item_hashes.tolist(), self._items, strict=True))
        h = state.histories
        rows = zip(state.users, h.items_BH.tolist(), h.times_BH.tolist(), h.length_B.tolist(), strict=True)
        for user, items, times, length in rows:
            history = {
                "user": user,
                "items": [names[item] for item in items[:length]],
                "times": [time_s * 1000 for time_s in times[:length]],
            }
            yield Message(user.encode(), msgspec.json.encode(history))

    def draw(self, count: int) -> list[Message]:
        """Events of users drawn by popularity."""
        return list(self._messages(self._draw(self._users_cdf, count).tolist()))

    def draw_distinct(self, count: int) -> list[Message]:
        """Events of as many users, drawn evenly."""
        return list(self._messages(self._rng.choice(len(self._users), count, replace=False).tolist()))

    def _messages(self, users: Sequence[int]) -> Iterator[Message]:
        items = self._draw(self._items_cdf, len(users)).tolist()
        actions = self._draw(self._actions_cdf, len(users)).tolist()
        for user, item, action in zip(users, items, actions, strict=True):
            self._time_ms += 1000
            yield message(self._users[user], self._items[item], self.actions.names[action], self._time_ms)

    def _draw(self, cdf: NDArray[np.float64], count: int) -> NDArray[np.intp]:
        return np.searchsorted(cdf, self._rng.random(count), side="right")


class Producer:
    """Puts messages on one partition of the events topic, None: by their keys; not what is measured."""

    def __init__(self, bootstrap: str, topic: str, partition: int | None = 0) -> None:
        self._topic = topic
        self._partition = partition
        servers = bootstrap.split(",")
        self._bulk = KafkaProducer(bootstrap_servers=servers, acks=1, linger_ms=5, batch_size=256 * 1024)
        self._single = KafkaProducer(bootstrap_servers=servers, acks=1, linger_ms=0)

    def produce(self, messages: Iterable[Message]) -> int:
        """As fast as it goes; returns how many, once all are acknowledged."""
        count = 0
        for count, (key, value) in enumerate(messages, 1):
            self._bulk.send(self._topic, value, key, partition=self._partition)
            if count % CHUNK == 0:
                self._bulk.flush(60)  # the client has no bound of its own
        self._bulk.flush(60)
        return count

    def pace(self, messages: Sequence[Message], rate: float) -> float:
        """One by one at `rate` a second; returns the rate it came to.

        Raises:
            BenchmarkError: the machine did not keep up with the rate.
        """
        start = time.monotonic()
        for number, (key, value) in enumerate(messages):
            ahead_s = start + number / rate - time.monotonic()
            if ahead_s > 0:
                time.sleep(ahead_s)
            self._single.send(self._topic, value, key, partition=self._partition)
        reached = len(messages) / (time.monotonic() - start)
        self._single.flush(60)
        if reached < 0.9 * rate:
            raise BenchmarkError(f"the load came to {reached:.0f} events/s, not {rate:.0f}. Is the machine busy?")
        return reached

    def close(self) -> None:
        """Done."""
        self._bulk.close()
        self._single.close()


def message(user: str, item: str, action: str, time_ms: int) -> Message:
    """An event as JSON."""
    value = f'{{"user":"{user}","item":"{item}","action":"{action}","time":{time_ms}}}'
    return Message(user.encode(), value.encode())


def _zipf_cdf(count: int, exponent: float) -> NDArray[np.float64]:
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    cdf = np.cumsum(weights)
    return np.asarray(cdf / cdf[-1])
