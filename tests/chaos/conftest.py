"""One Kafka for all scenarios, which they may stop, kill and pause, and the table at the end of `make chaos`."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from demo.broker import Broker
from stream_worker.errors import SettingsError
from tests import needs
from tests.chaos.arena import Arena
from tests.chaos.verdict import ROWS, table
from tests.worker.conftest import models

__all__ = ["models"]

# The broker looks for transactions that nobody will end every 10 s; a takeover that meets one waits for so much longer.
PROPERTIES = {"transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000"}


@pytest.fixture(scope="session")
def chaos_broker() -> Iterator[Broker]:
    """A real Apache Kafka for the scenarios of this folder, which come one after the other."""
    broker = Broker(properties=PROPERTIES)
    try:
        broker.start()
    except SettingsError as error:  # no java, no jars
        needs.missing(str(error))
    yield broker
    broker.close()


@pytest.fixture
def arena(
    chaos_broker: Broker, models: dict[str, Path], tmp_path: Path, unique: Callable[[str], str], seed: int
) -> Iterator[Arena]:
    """Topics of one's own on it, whatever the scenario before has done."""
    chaos_broker.resume()
    chaos_broker.start()
    with Arena(chaos_broker, models["popularity"], tmp_path, unique, seed) as arena:
        yield arena


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if ROWS:
        terminalreporter.section("chaos")
        terminalreporter.write_line(table())
