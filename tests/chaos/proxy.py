"""A loopback TCP proxy that knows enough of Kafka's protocol to break the connection at the worst moments."""

import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
# https://kafka.apache.org/protocol#protocol_api_keys
PRODUCE, FETCH, METADATA, FIND_COORDINATOR, JOIN_GROUP, HEARTBEAT, SYNC_GROUP = 0, 1, 3, 10, 11, 12, 14
INIT_PRODUCER_ID, ADD_PARTITIONS, ADD_OFFSETS, END_TXN, TXN_OFFSET_COMMIT = 22, 24, 25, 26, 28
COMMIT = (END_TXN, TXN_OFFSET_COMMIT, ADD_OFFSETS, ADD_PARTITIONS, INIT_PRODUCER_ID)
LONGEST_DELAY_S = 2.0
SILENCE_S = 9.0  # longer than a session


@dataclass(frozen=True)
class Faults:
    """What happens to requests: the share of each kind that is broken, and how."""

    shares: Mapping[int, float]  # by api key
    kinds: tuple[str, ...]

    @classmethod
    def draw(cls, rng: random.Random) -> Self:
        """Mostly around the commit; sometimes all that is said."""
        shares = {key: rng.choice([0, 0.1, 0.5]) for key in COMMIT}
        shares[PRODUCE] = rng.choice([0, 0.02, 0.1])
        for key in (FETCH, METADATA, FIND_COORDINATOR, JOIN_GROUP, SYNC_GROUP, HEARTBEAT):
            shares[key] = rng.choice([0, 0, 0.05])
        kinds = ("delay", "lose the request", "lose the answer", "fall silent")
        return cls(shares, tuple(rng.sample(kinds, rng.randrange(1, 5))))


class Proxy:
    """Forwards connections to `upstream`; `faults` may be changed at any time, None forwards all.

    Args:
        port: where to listen.
        upstream: the port of the broker's listener that advertises `port`.
        rng: decides; which connection asks first is the threads' affair.
    """

    def __init__(self, port: int, upstream: int, rng: random.Random) -> None:
        self.bootstrap = f"{HOST}:{port}"
        self.faults: Faults | None = None
        self.counts: Counter[str] = Counter()
        self._upstream = upstream
        self._rng = rng
        self._closed = False
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._server = socket.create_server((HOST, port))
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        with self._lock:
            open_ones = set(self._sockets)
        self._cut(*open_ones)

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            try:
                broker = socket.create_connection((HOST, self._upstream))
            except OSError:
                client.close()
                continue
            with self._lock:
                self._sockets |= {client, broker}
            silent = threading.Event()
            for pump in (self._requests, self._answers):
                threading.Thread(target=pump, args=(client, broker, silent), daemon=True).start()

    def _requests(self, client: socket.socket, broker: socket.socket, silent: threading.Event) -> None:
        """From the worker to the broker, request by request."""
        with suppress(OSError), client.makefile("rb") as stream:
            while len(size := stream.read(4)) == 4:
                request = stream.read(struct.unpack(">i", size)[0])
                (api_key,) = struct.unpack_from(">h", request)
                fault = self._fault(api_key)
                if fault == "delay":
                    time.sleep(self._rng.uniform(0.01, LONGEST_DELAY_S))
                elif fault == "lose the request":
                    break
                elif fault == "lose the answer":
                    silent.set()
                    broker.sendall(size + request)
                    time.sleep(0.2)  # the broker has done it
                    break
                elif fault == "fall silent":
                    silent.set()
                    broker.sendall(size + request)
                    time.sleep(SILENCE_S)
                    break
                broker.sendall(size + request)
        self._cut(client, broker)

    def _answers(self, client: socket.socket, broker: socket.socket, silent: threading.Event) -> None:
        """From the broker to the worker, byte by byte."""
        with suppress(OSError):
            while data := broker.recv(65536):
                if not silent.is_set():
                    client.sendall(data)
        self._cut(client, broker)

    def _fault(self, api_key: int) -> str | None:
        faults = self.faults
        if faults is None or self._rng.random() >= faults.shares.get(api_key, 0):
            return None
        fault = self._rng.choice(faults.kinds)
        self.counts[fault] += 1
        return fault

    def _cut(self, *ends: socket.socket) -> None:
        for end in ends:
            with self._lock:
                self._sockets.discard(end)
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
