"""What the browsers are told. The demo's threads hand in, the server's event loop hands out.

A browser that reads slowly costs no memory and delays nobody: of figures and lists only the newest waits for it.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from demo.audience import Audience
from demo.page.titles import Titles, shown
from stream_worker.messages import TopK
from stream_worker.reader import Update

KEEP_ALIVE_S = 15.0
LIST_EVERY_S = 0.5  # of lists that no click of this browser's asked for: a user of the log may get twenty a second
NOTICES = 50

Answer = dict[str, object]  # to a click: its id, and the milliseconds until its list was published
Render = Callable[[str, TopK | None, list[Answer]], bytes]

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class Click:
    """A click on the page, and the record that it became."""

    id: str  # the browser's own
    user: str
    at_ms: float  # when it reached the server, epoch ms
    partition: int
    offset: int

    def covered_by(self, found: TopK | None) -> bool:
        """Whether this list knows of the click."""
        return found is not None and found.partition == self.partition and found.offset >= self.offset


class Watcher:
    """One browser, watching one user. All on the event loop."""

    def __init__(self, user: str) -> None:
        self.user = user
        self._wake = asyncio.Event()
        self._state: dict[str, bytes] = {}  # by kind
        self._notices: deque[bytes] = deque(maxlen=NOTICES)
        self._list: tuple[TopK | None] | None = None
        self._answers: list[Answer] = []
        self._ended = False

    def put(self, kind: str, message: bytes) -> None:
        """The newest message of a kind replaces the one that waits."""
        if kind == "notice":
            self._notices.append(message)
        else:
            self._state[kind] = message
        self._wake.set()

    def put_list(self, found: TopK | None, answers: list[Answer]) -> None:
        """A newer list, and the clicks that it is the first to know of."""
        self._list = (found,)
        self._answers += answers
        self._wake.set()

    def end(self) -> None:
        """Say what waits, and then no more."""
        self._ended = True
        self._wake.set()

    async def messages(self, render: Render) -> AsyncIterator[bytes]:
        """Server-Sent Events, until `end`."""
        clock = asyncio.get_running_loop().time
        next_list = clock()
        yield b"retry: 1000\n\n"
        while True:
            self._wake.clear()  # before anything is taken, so that what comes meanwhile wakes us again
            if self._list is not None and (self._answers or self._ended or clock() >= next_list):
                (found,), answers = self._list, self._answers
                self._list, self._answers = None, []
                next_list = clock() + LIST_EVERY_S
                yield _event("list", render(self.user, found, answers))
            for message in self._due():
                yield message
            if self._ended:
                yield _event("end", b"{}")
                return
            wait_s = KEEP_ALIVE_S if self._list is None else max(0.0, next_list - clock())
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), wait_s)
                continue
            if self._list is None:
                yield b": still here\n\n"

    def _due(self) -> Iterator[bytes]:
        state, self._state = self._state, {}
        for kind, message in state.items():
            yield _event(kind, message)
        while self._notices:
            yield _event("notice", self._notices.popleft())


class Hub:
    """All watchers.

    Args:
        titles: what items are called.
        audience: who has seen what.
        latest: the newest list of a user, as `stream_worker.reader` has it.
    """

    def __init__(self, titles: Titles, audience: Audience, latest: Callable[[str], TopK | None]) -> None:
        self._titles = titles
        self._audience = audience
        self._latest = latest
        self._watchers: dict[str, list[Watcher]] = {}
        self._clicks: dict[str, list[Click]] = {}  # of watched users: those that no list knows of yet
        self._state: dict[str, bytes] = {}  # the newest message of each kind, for those who come later
        self._notices: deque[bytes] = deque(maxlen=NOTICES)
        self._loop: asyncio.AbstractEventLoop | None = None

    # -- from any thread -----------------------------------------------------------------------------------------

    def tell(self, kind: str, message: object) -> None:
        """Tell every browser, now and later ones too."""
        self._post(self._tell, kind, _encode(message))

    def listed(self, update: Update) -> None:
        """A newer list was read."""
        if update.user in self._watchers:
            self._post(self._listed, update.user, update.top)

    def close(self) -> None:
        """The demo ends."""
        self._post(self._close)
        self._loop = None

    @property
    def watched(self) -> int:
        """How many users somebody watches."""
        return len(self._watchers)

    # -- on the event loop ---------------------------------------------------------------------------------------

    def open(self) -> None:
        """From now on this thread's event loop hands out."""
        self._loop = asyncio.get_running_loop()

    async def watch(self, user: str) -> AsyncIterator[bytes]:
        """Server-Sent Events for one browser, as long as it listens."""
        watcher = Watcher(user)
        self._watchers.setdefault(user, []).append(watcher)
        try:
            for kind, message in self._state.items():
                watcher.put(kind, message)
            for message in self._notices:
                watcher.put("notice", message)
            watcher.put_list(self._latest(user), [])
            async for message in watcher.messages(self._render):
                yield message
        finally:
            self._watchers[user].remove(watcher)
            if not self._watchers[user]:
                del self._watchers[user]
                self._clicks.pop(user, None)

    def clicked(self, click: Click) -> None:
        """Kafka has taken a click."""
        if click.user not in self._watchers:
            return
        self._clicks.setdefault(click.user, []).append(click)
        if click.covered_by(found := self._latest(click.user)):  # the list was quicker than the acknowledgement
            self._listed(click.user, found)

    def _listed(self, user: str, found: TopK | None) -> None:
        clicks = self._clicks.get(user, [])
        covered = [click for click in clicks if click.covered_by(found)]
        self._clicks[user] = [click for click in clicks if click not in covered]
        published_ms = found.published_time if found else 0
        answers: list[Answer] = [{"id": click.id, "ms": max(0, round(published_ms - click.at_ms))} for click in covered]
        for watcher in self._watchers.get(user, []):
            watcher.put_list(found, answers)

    def _tell(self, kind: str, message: bytes) -> None:
        if kind == "notice":
            self._notices.append(message)
        else:
            self._state[kind] = message
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.put(kind, message)

    def _close(self) -> None:
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.end()

    def _render(self, user: str, found: TopK | None, answers: list[Answer]) -> bytes:
        message: dict[str, Any] = {
            "user": user,
            "own": found is not None,
            "rows": shown(self._titles, found, self._audience.popular(user)),
            "seen": [self._titles[item].title for item in self._audience.recent(user)],
            "answers": answers,
        }
        if found is not None:
            message |= {
                "events": found.events,
                "partition": found.partition,
                "offset": found.offset,
                "wait_ms": max(0, found.published_time - found.received_time),
            }
        return _encode(message)

    def _post(self, call: Callable[..., None], *arguments: object) -> None:
        loop = self._loop
        if loop is not None:
            loop.call_soon_threadsafe(call, *arguments)


def _event(kind: str, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), data)
