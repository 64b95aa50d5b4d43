"""The images of this run, and small bundles for the workers in them."""

import pytest

from tests.images.engine import SEEN, Image
from tests.worker.conftest import models

__all__ = ["models"]


@pytest.fixture(scope="session")
def worker() -> Image:
    """The image that serves on the CPU."""
    return Image("worker")


@pytest.fixture(scope="session")
def exporter() -> Image:
    """The image that trains."""
    return Image("exporter")


@pytest.fixture(scope="session", params=["worker", "worker-gpu", "exporter"])
def image(request: pytest.FixtureRequest) -> Image:
    """Each of them."""
    return Image(request.param)


@pytest.fixture(scope="session", params=["worker", "worker-gpu"])
def serving(request: pytest.FixtureRequest) -> Image:
    """Those that serve."""
    return Image(request.param)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if SEEN:
        terminalreporter.section("images")
        terminalreporter.write_line("\n".join(SEEN))
