"""The load: who clicks on what, as records of the events topic, and how fast they are produced."""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from kafka import KafkaProducer
from numpy.typing import NDArray

from benchmarks.errors import BenchmarkError

ZIPF = 1.1
FIRST_TIME_MS = 1_577_836_800_000  # 2020; an event a second from there, so that no event repeats another
CHUNK = 10_000


class Message(NamedTuple):
    """A record of the events topic."""

    key: bytes
    value: bytes


class Load:
    """Users and items drawn by Zipf's law, each in a shuffled order of popularity.

    Args:
        users: how many there are; their ids have 12 bytes.
        items: the catalogue.
        action: of every event.
        seed: the same seed gives the same events.
    """

    def __init__(self, users: int, items: Sequence[str], action: str, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._users = [f"user{number:08d}" for number in self._rng.permutation(users)]
        self._items = [items[row] for row in self._rng.permutation(len(items))]
        self._users_cdf, self._items_cdf = _zipf_cdf(users), _zipf_cdf(len(items))
        self._action = action
        self._time_ms = FIRST_TIME_MS

    def fill(self, events_each: int) -> Iterator[Message]:
        """So many events of every user, in turn."""
        for _ in range(events_each):
            yield from self._messages(range(len(self._users)))

    def draw(self, count: int) -> list[Message]:
        """Events of users drawn by popularity."""
        return list(self._messages(self._draw(self._users_cdf, count)))

    def _messages(self, users: Sequence[int]) -> Iterator[Message]:
        items = self._draw(self._items_cdf, len(users))
        for user, item in zip(users, items, strict=True):
            self._time_ms += 1000
            name = self._users[user]
            value = '{"user":"%s","item":"%s","action":"%s","time":%d}'
            yield Message(name.encode(), (value % (name, self._items[item], self._action, self._time_ms)).encode())

    def _draw(self, cdf: NDArray[np.float64], count: int) -> list[int]:
        drawn: list[int] = np.searchsorted(cdf, self._rng.random(count), side="right").tolist()
        return drawn


class Producer:
    """Puts messages on partition 0 of the events topic; not what is measured."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._topic = topic
        servers = bootstrap.split(",")
        self._bulk = KafkaProducer(bootstrap_servers=servers, acks=1, linger_ms=5, batch_size=256 * 1024)
        self._single = KafkaProducer(bootstrap_servers=servers, acks=1, linger_ms=0)

    def produce(self, messages: Iterable[Message]) -> int:
        """As fast as it goes; returns how many, once all are acknowledged."""
        count = 0
        for count, (key, value) in enumerate(messages, 1):
            self._bulk.send(self._topic, value, key, partition=0)
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
            self._single.send(self._topic, value, key, partition=0)
        reached = len(messages) / (time.monotonic() - start)
        self._single.flush(60)
        if reached < 0.9 * rate:
            raise BenchmarkError(f"the load came to {reached:.0f} events/s, not {rate:.0f}. Is the machine busy?")
        return reached

    def close(self) -> None:
        """Done."""
        self._bulk.close()
        self._single.close()


def _zipf_cdf(count: int) -> NDArray[np.float64]:
    weights = np.arange(1, count + 1, dtype=np.float64) ** -ZIPF
    cdf = np.cumsum(weights)
    return np.asarray(cdf / cdf[-1])
