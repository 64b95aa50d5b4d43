"""What would stop the demo, each in one line with the mend, before any work starts.

Standard library only: `make demo` runs it as `python3 -m demo.preflight` even before the environment is installed.
Java, Maven and Python themselves are scripts/preflight's.
"""

import os
import shutil
import socket
import sys
from collections.abc import Iterator

from demo.broker import port_in_use
from demo.settings import DemoSettings, parse_settings
from stream_worker.errors import SettingsError

CONNECT_TIMEOUT_S = 3.0


def problems(settings: DemoSettings) -> Iterator[str]:
    """Every problem found, a line each."""
    if settings.bootstrap is None:
        yield from _broker_problems(settings.kafka_port)
    elif not any(_answers(address) for address in settings.bootstrap.split(",")):
        yield (
            f"no broker answers at {settings.bootstrap}: start it, correct BOOTSTRAP, "
            "or leave BOOTSTRAP out, and the demo starts one"
        )
    for port in settings.http_ports:
        if port_in_use(port):
            yield f"port {port} is in use: stop what listens there, or choose two others with HTTP_PORT={port + 100}"
    if port_in_use(settings.page_port):
        yield (
            f"port {settings.page_port} is in use: stop what listens there, "
            f"or choose another for the page with PAGE_PORT={settings.page_port + 100}"
        )
    ours = settings.http_ports if settings.bootstrap else [settings.kafka_port, *settings.http_ports]
    if settings.page_port in ours:
        yield f"PAGE_PORT={settings.page_port} is Kafka's or a worker's, too: choose another"
    if settings.bootstrap is None and settings.kafka_port in settings.http_ports:
        yield f"KAFKA_PORT={settings.kafka_port} is a worker's HTTP port, too: choose another"
    for name, path in (("DEMO_EVENTS", settings.events), ("DEMO_ITEMS", settings.items)):
        if path is not None and not path.is_file():
            yield f"{name}={path}: no such file"
    if settings.items is not None and settings.events is None:
        yield "DEMO_ITEMS goes with DEMO_EVENTS: name both, or neither"


def _broker_problems(port: int) -> Iterator[str]:
    if shutil.which("java") is None:
        yield (
            "java is not on PATH: install Java 17 or newer (Debian: openjdk-17-jre-headless), "
            "or name a running broker with BOOTSTRAP=host:port"
        )
    if port_in_use(port):
        yield (
            f"port {port} is in use: stop what listens there, use it with BOOTSTRAP=localhost:{port} if it is Kafka, "
            f"or choose another with KAFKA_PORT={port + 100}"
        )


def _answers(address: str) -> bool:
    host, _, port = address.strip().rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S):
            return True
    except OSError:
        return False


def main() -> int:
    """Print the problems; exit 2 if there are any."""
    try:
        found = list(problems(parse_settings(sys.argv[1:], os.environ)))
    except SettingsError as error:
        found = [str(error)]
    for problem in found:
        print(f"demo: {problem}", file=sys.stderr)
    return SettingsError.exit_code if found else 0


if __name__ == "__main__":
    sys.exit(main())
