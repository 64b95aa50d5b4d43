"""The page's HTTP interface: files, one stream of Server-Sent Events, and the buttons.

It is for this machine alone. A request must name a host of this machine, so that no foreign name can be made to point
here; and what changes something must be a POST that comes from the page itself.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demo.page.hub import Click, Hub
from demo.page.titles import Titles
from stream_worker.errors import RejectedEventError, TransportError
from stream_worker.messages import user_id

STATIC = Path(__file__).with_name("static")
FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js", "/icon.svg": "icon.svg"}
HOSTS = ["127.0.0.1", "localhost"]
MOST_BYTES = 2048  # of a request's body
SAFE = {"GET", "HEAD"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Controls:
    """What the buttons do; each is called on a thread that may wait.

    `click` takes a user and an item and returns the partition and offset of its record; `kill` and `start` take a
    worker's number and return whether there was something to do; `keep` keeps the demo going.
    """

    click: Callable[[str, str], tuple[int, int]]
    kill: Callable[[int], bool]
    start: Callable[[int], bool]
    keep: Callable[[], None]


class ClickRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /clicks; `id` is the browser's own and comes back with the list."""

    id: str
    user: str
    item: str


class Page:
    """The handlers."""

    def __init__(self, hub: Hub, titles: Titles, offered: list[str], controls: Controls) -> None:
        self._hub = hub
        self._titles = titles
        self._offered = msgspec.json.encode([titles[item] for item in offered])
        self._controls = controls

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            *(Route(path, _file(name)) for path, name in FILES.items()),
            Route("/titles", self.offered),
            Route("/live", self.live),
            Route("/clicks", self.click, methods=["POST"]),
            Route("/workers/{number:int}/kill", self.kill, methods=["POST"]),
            Route("/workers/{number:int}/start", self.start, methods=["POST"]),
            Route("/keep", self.keep, methods=["POST"]),
        ]

    async def offered(self, _request: Request) -> Response:
        """The titles to choose from."""
        return Response(self._offered, media_type="application/json")

    async def live(self, request: Request) -> Response:
        """Server-Sent Events: figures, workers, notices, and the lists of one user."""
        try:
            user = user_id(request.query_params.get("user"))
        except RejectedEventError as error:
            return _refused(str(error))
        return StreamingResponse(self._hub.watch(user), media_type="text/event-stream")

    async def click(self, request: Request) -> Response:
        """A user has chosen an item."""
        at_ms = time.time() * 1000
        try:
            click = msgspec.json.decode(await _body(request), type=ClickRequest)
            user = user_id(click.user)
        except (msgspec.MsgspecError, RejectedEventError) as error:
            return _refused(str(error))
        if click.item not in self._titles:
            return _refused("no such item")
        try:
            partition, offset = await run_in_threadpool(self._controls.click, user, click.item)
        except TransportError as error:
            return PlainTextResponse(str(error), 503)
        self._hub.clicked(Click(click.id, user, at_ms, partition, offset))
        return _done()

    async def kill(self, request: Request) -> Response:
        """`kill -9` for a worker."""
        return await self._change(self._controls.kill, request)

    async def start(self, request: Request) -> Response:
        """A worker comes back."""
        return await self._change(self._controls.start, request)

    async def keep(self, _request: Request) -> Response:
        """The demo goes on until Ctrl-C."""
        await run_in_threadpool(self._controls.keep)
        return _done()

    async def _change(self, change: Callable[[int], bool], request: Request) -> Response:
        try:
            changed = await run_in_threadpool(change, request.path_params["number"])
        except KeyError:
            return PlainTextResponse("no such worker", 404)
        return _done() if changed else PlainTextResponse("nothing to do", 409)


class Guard:
    """Lets only the page itself change something, and sets the headers of every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        app: Callable[[Scope, Receive, Send], Awaitable[None]] = self._app
        if scope["method"] not in SAFE and not same_origin(Headers(scope=scope)):
            app = PlainTextResponse("only the page itself may do this", 403)
        await app(scope, receive, send_with_headers)


def same_origin(headers: Headers) -> bool:
    """Whether a request comes from a page of this server's. Browsers name the origin of every POST."""
    return headers.get("origin") == f"http://{headers.get('host')}"


def create_app(page: Page) -> Starlette:
    """The ASGI application."""
    guards = [Middleware(Guard), Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)]
    return Starlette(routes=page.routes(), middleware=guards)


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def serve(_request: Request) -> Response:
        return FileResponse(STATIC / name)

    return serve


async def _body(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise RejectedEventError("invalid_field", f"the body is longer than {MOST_BYTES} bytes")
    return body


def _refused(why: str) -> Response:
    return PlainTextResponse(why, 400)


def _done() -> Response:
    return Response(status_code=204)
