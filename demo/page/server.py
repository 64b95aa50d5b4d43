"""The server of the page: uvicorn on the loopback address, on a thread of its own."""

import asyncio
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from demo.broker import HOST
from demo.page.hub import Hub
from stream_worker.errors import SettingsError

LAST_WORDS_S = 2  # for browsers to take the last messages


@contextmanager
def serving(app: ASGIApp, hub: Hub, port: int) -> Iterator[str]:
    """Serve while the `with` lasts; gives the address.

    Raises:
        SettingsError: the port is taken.
    """
    try:
        listener = socket.create_server((HOST, port))
    except OSError as error:
        raise SettingsError(f"PAGE_PORT={port}: cannot listen there: {error.strerror}; choose another.") from error
    # No access log: it would name users. Signals stay ours, because uvicorn takes them in the main thread alone.
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=LAST_WORDS_S
    )
    server = uvicorn.Server(config)
    opened = threading.Event()

    async def serve() -> None:
        hub.open()
        opened.set()
        await server.serve(sockets=[listener])

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="page", daemon=True)
    thread.start()
    opened.wait()
    try:
        yield f"http://localhost:{port}/"
    finally:
        hub.close()
        server.should_exit = True
        thread.join()
        listener.close()


def open_browser(address: str) -> None:
    """Show the page, where somebody sits before a screen; a browser that does not start is no problem of ours."""
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if screen and sys.stdout.isatty():
        threading.Thread(target=_open, args=(address,), name="browser", daemon=True).start()


def _open(address: str) -> None:
    try:
        webbrowser.open(address)
    except (OSError, webbrowser.Error):
        return
