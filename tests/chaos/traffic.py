"""Events that flow while things break: views, purchases, late ones, repeats, what is no event, and erasures."""

import json
import random
import threading
import time
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from kafka import KafkaProducer
from kafka.errors import KafkaError

ITEMS = 80  # the model knows 60 of them
MOST_IN_FLIGHT = 5000
TICK_S = 0.02


class Traffic:
    """Produces on a thread of its own, `rate` events a second, until told to stop.

    Args:
        bootstrap, topic: where to.
        seed: of users, items and kinds; how they fall into seconds depends on the clock.
        users: how many.
        rate: events a second, while the broker takes them.
    """

    def __init__(self, bootstrap: str, topic: str, seed: int, users: int, rate: int) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._rng = random.Random(seed)
        self._users = users
        self._rate = rate
        self._recent: deque[tuple[bytes, bytes]] = deque(maxlen=50)
        self._in_flight = 0
        self._lock = threading.Lock()  # of `_in_flight`
        self._flowing = threading.Event()
        self._idle = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)
        self.sent = 0
        self.restarts = 0  # of the producer

    def __enter__(self) -> Self:
        self._thread.start()
        self.flow()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        self._flowing.set()
        self._thread.join(60)

    def flow(self) -> None:
        """Begin, or go on."""
        self._idle.clear()
        self._flowing.set()

    def pause(self) -> None:
        """Send nothing more; returns when all that was sent is in the log, or has failed."""
        self._flowing.clear()
        assert self._idle.wait(60), "the producer hangs"

    def _run(self) -> None:
        producer = self._producer()
        due = time.monotonic()
        while not self._stopping:
            if not self._flowing.is_set():
                self._flush(producer)
                self._idle.set()
                self._flowing.wait()
                due = time.monotonic()
                continue
            try:
                for _ in range(int(self._rate * TICK_S) if self._in_flight < MOST_IN_FLIGHT else 0):
                    self._send(producer)
            except KafkaError:  # it has waited for a broker that is away: begin anew
                producer.close(timeout=0)
                producer, self._in_flight, self.restarts = self._producer(), 0, self.restarts + 1
            due = max(due + TICK_S, time.monotonic() - 1)
            time.sleep(max(0.0, due - time.monotonic()))
        self._flush(producer)
        producer.close(timeout=5)

    def _producer(self) -> KafkaProducer:
        while True:
            try:
                return KafkaProducer(
                    bootstrap_servers=self._bootstrap, acks="all", enable_idempotence=False, linger_ms=5,
                    delivery_timeout_ms=20_000, request_timeout_ms=10_000, max_block_ms=5000,
                    reconnect_backoff_max_ms=500, bootstrap_timeout_ms=2000,
                )  # fmt: skip
            except KafkaError:
                if self._stopping:
                    raise

    def _flush(self, producer: KafkaProducer) -> None:
        with suppress(KafkaError):
            producer.flush(timeout=30)

    def _send(self, producer: KafkaProducer) -> None:
        key, value = self._event()
        future = producer.send(self._topic, value, key)
        with self._lock:
            self._in_flight += 1
        self.sent += 1
        future.add_callback(self._done).add_errback(self._done)

    def _done(self, _: object) -> None:
        with self._lock:
            self._in_flight -= 1

    def _event(self) -> tuple[bytes, bytes]:
        rng = self._rng
        number = rng.randrange(self._users)
        user = f"u{number}" if number % 50 else f"ü{number}"
        kind = rng.random()
        if kind < 0.002:
            return user.encode(), rng.choice([b"{", b"", b'{"user": "another", "item": "i1"}', b'{"item": "i1"}'])
        if kind < 0.004:
            return user.encode(), json.dumps({"user": user, "action": "forget"}).encode()
        if kind < 0.04 and self._recent:
            return rng.choice(self._recent)
        event: dict[str, Any] = {"user": user, "item": f"i{rng.randrange(ITEMS)}"}
        if kind < 0.2:
            event["action"] = rng.choice(["purchase", "hide", "click", "löschen"])
        if kind < 0.9:
            late_s = rng.randrange(1, 86_400) if kind > 0.8 else 0
            event["time"] = int(time.time() - late_s) * 1000
        found = user.encode(), json.dumps(event).encode()
        self._recent.append(found)
        return found
