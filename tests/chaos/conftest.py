"""One Kafka for all scenarios, which they may stop, kill and pause, and the table at the end of `make chaos`."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from demo.broker import Broker, free_port
from stream_worker.errors import SettingsError
from tests import needs
from tests.chaos.arena import LONG, Arena
from tests.chaos.proxy import Proxy
from tests.chaos.verdict import ROWS, table
from tests.worker.conftest import models
from tests.worker.process import CLIENTS

__all__ = ["models"]

# The broker looks for transactions that nobody will end every 10 s; a takeover that meets one waits for so much longer.
PROPERTIES = {
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    # A second door, which has clients come back through the proxy.
    "listeners": "PLAINTEXT://{{host}}:{{port}},CONTROLLER://{{host}}:{{controller_port}},PROXIED://{{host}}:{inner}",
    "advertised.listeners": "PLAINTEXT://{{host}}:{{port}},PROXIED://{{host}}:{outer}",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT",
    "inter.broker.listener.name": "PLAINTEXT",
}


@pytest.fixture(scope="session")
def doors() -> tuple[int, int]:
    """The ports of the broker's second listener, and of the proxy that it advertises."""
    return free_port(), free_port()


@pytest.fixture(scope="session")
def chaos_broker(doors: tuple[int, int]) -> Iterator[Broker]:
    """A real Apache Kafka for the scenarios of this folder, which come one after the other."""
    inner, outer = doors
    broker = Broker(properties={name: text.format(inner=inner, outer=outer) for name, text in PROPERTIES.items()})
    try:
        broker.start()
    except SettingsError as error:  # no java, no jars
        needs.missing(str(error))
    yield broker
    broker.close()


@pytest.fixture(params=CLIENTS if LONG else CLIENTS[:1])
def arena(
    request: pytest.FixtureRequest,
    chaos_broker: Broker,
    models: dict[str, Path],
    tmp_path: Path,
    unique: Callable[[str], str],
    seed: int,
) -> Iterator[Arena]:
    """Topics of one's own on it, whatever the scenario before has done; its parameter is the workers' client."""
    chaos_broker.resume()
    chaos_broker.start()
    with Arena(chaos_broker, models["popularity"], tmp_path, unique, seed, request.param) as arena:
        yield arena


@pytest.fixture
def proxy(arena: Arena, doors: tuple[int, int]) -> Iterator[Proxy]:
    """What the arena's workers go through."""
    inner, outer = doors
    with Proxy(outer, inner, random.Random(arena.rng.random())) as proxy:
        arena.bootstrap = proxy.bootstrap
        yield proxy


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if ROWS:
        terminalreporter.section("chaos")
        terminalreporter.write_line(table())
