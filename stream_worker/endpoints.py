"""/metrics, /livez and /readyz, on the standard library's threaded server."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from stream_worker.errors import SettingsError

IDLE_S = 120  # of a connection; a scraper that vanished would else keep its thread for ever

Check = Callable[[], str | None]  # None if all is well, else what is not


class Endpoints:
    """Serves until `close`.

    Args:
        host, port: where; port 0 takes a free one.
        registry: what /metrics shows.
        live, ready: checks; they are called on the server's threads and must only read.
    """

    def __init__(self, host: str, port: int, registry: CollectorRegistry, live: Check, ready: Check) -> None:
        self._address = (host, port)
        self._registry = registry
        self._checks = {"/livez": live, "/readyz": ready}
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> int:
        """Listen; returns the port.

        Raises:
            SettingsError: the port is taken, or the address is not ours.
        """
        endpoints = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = IDLE_S

            def do_GET(self) -> None:
                status, kind, body = endpoints.answer(self.path.partition("?")[0], self.headers.get("Accept", ""))
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """A line for each scrape is noise."""

        try:
            self._server = ThreadingHTTPServer(self._address, Handler)
        except OSError as error:
            host, port = self._address
            raise SettingsError(
                f"--http-port: cannot listen on {host}:{port}: {error.strerror}. Choose another."
            ) from error
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="endpoints", daemon=True).start()
        return int(self._server.server_address[1])

    def answer(self, path: str, accept: str) -> tuple[int, str, bytes]:
        """Status, content type and body of a request."""
        if path == "/metrics":
            encode, kind = choose_encoder(accept)
            return 200, kind, encode(self._registry)
        if path in self._checks:
            problem = self._checks[path]()
            return (200, "text/plain", b"ok\n") if problem is None else (503, "text/plain", f"{problem}\n".encode())
        return 404, "text/plain", b"there are /metrics, /livez and /readyz\n"

    def close(self) -> None:
        """Stop listening."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
