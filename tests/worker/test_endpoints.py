"""/metrics, /livez, /readyz."""

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from stream_worker.endpoints import Endpoints
from stream_worker.errors import SettingsError
from stream_worker.metrics import Metrics


class Health:
    """What the checks answer."""

    live: str | None = None
    ready: str | None = "restoring"


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def base(health: Health) -> Iterator[str]:
    """Where they listen."""
    endpoints = Endpoints("127.0.0.1", 0, Metrics().registry, lambda: health.live, lambda: health.ready)
    yield f"http://127.0.0.1:{endpoints.start()}"
    endpoints.close()


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_health_says_what_is_wrong(base: str, health: Health) -> None:
    assert get(f"{base}/livez") == (200, "ok\n")
    assert get(f"{base}/readyz") == (503, "restoring\n")
    health.ready, health.live = None, "no step for 31 s"
    assert get(f"{base}/readyz") == (200, "ok\n")
    assert get(f"{base}/livez") == (503, "no step for 31 s\n")


def test_metrics_are_there_and_other_paths_are_not(base: str) -> None:
    status, body = get(f"{base}/metrics?x=1")
    assert status == 200
    assert "stream_worker_batch_users_bucket" in body
    assert get(f"{base}/")[0] == 404


def test_a_port_in_use_is_said_with_the_mend() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        endpoints = Endpoints("127.0.0.1", taken.getsockname()[1], Metrics().registry, lambda: None, lambda: None)
        with pytest.raises(SettingsError, match="--http-port: cannot listen on"):
            endpoints.start()
