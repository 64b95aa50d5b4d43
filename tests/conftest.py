"""Fixtures that every suite shares."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before onnxruntime is imported anywhere

import random
import uuid
from collections.abc import Callable, Iterator

import pytest

from demo.broker import Broker
from stream_worker.errors import SettingsError
from tests import needs

SEED = int(os.environ.get("SEED") or random.randrange(2**32))


def pytest_configure(config: pytest.Config) -> None:
    # Elsewhere Hypothesis is left to its own seed, because with a given one it forgets the failures it has stored.
    if os.environ.get("SEED") or os.environ.get("CI"):
        config.option.hypothesis_seed = str(SEED)


def pytest_report_header() -> str:
    return f"seed: {SEED} (SEED={SEED} repeats the random tests)"


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"broker", "own_broker", "fortress"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("kafka")


@pytest.fixture(scope="session")
def seed() -> int:
    """The seed of this run's random tests."""
    return SEED


@pytest.fixture
def unique() -> Callable[[str], str]:
    """A name nobody has used: `unique("events")` for topics and groups on the shared broker."""
    return lambda prefix: f"{prefix}-{uuid.uuid4().hex[:8]}"


def start(broker: Broker) -> Broker:
    """Start it, or end the test."""
    try:
        broker.start()
    except SettingsError as error:  # no java, no jars
        needs.missing(str(error))
    return broker


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """A real Apache Kafka, shared by the whole run: use names of your own, and do not stop it."""
    broker = start(Broker())
    yield broker
    broker.close()


@pytest.fixture
def own_broker() -> Iterator[Broker]:
    """A real Apache Kafka for one test alone, which may stop, kill and pause it."""
    broker = start(Broker())
    yield broker
    broker.close()
