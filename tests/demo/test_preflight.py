"""What stops the demo is said in one line with the mend, before any work starts."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.broker import ROOT, free_port
from demo.children import Child, Stop, Stopped, run_to_end, stop_all
from demo.preflight import problems
from demo.settings import DemoSettings, parse_settings
from demo.stack import alone
from stream_worker.errors import SettingsError


def free_ports() -> dict[str, str]:
    """Ports for a broker, two workers and the page, as variables."""
    while True:
        ports = {name: str(free_port()) for name in ("KAFKA_PORT", "HTTP_PORT", "PAGE_PORT")}
        if not list(problems(parse_settings([], ports))):
            return ports


@pytest.fixture
def occupied() -> Iterator[int]:
    """A port in use; the next one, which a second worker would take, is free."""
    while True:
        with socket.socket() as other, socket.socket() as following:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            try:
                following.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            following.close()
            yield port
            return


def settings_of(**variables: str) -> DemoSettings:
    return parse_settings([], free_ports() | variables)


def test_a_flag_wins_over_the_environment_and_an_empty_variable_is_none() -> None:
    settings = parse_settings(["--rate", "500"], {"RATE": "100", "DURATION": "", "SEED": "7"})
    assert (settings.rate, settings.duration, settings.seed) == (500, None, 7)
    assert parse_settings([], {"DURATION": "0"}).duration == 0


@pytest.mark.parametrize(
    ("variable", "value"),
    [("RATE", "fast"), ("RATE", "0"), ("RATE", "nan"), ("DURATION", "-1"), ("DURATION", "inf"), ("SEED", "1.5"),
     ("BOOTSTRAP", "localhost"), ("BOOTSTRAP", "a:1,b"), ("KAFKA_PORT", "70000"), ("HTTP_PORT", "x")],
)  # fmt: skip
def test_a_value_that_cannot_be_is_named_with_an_example(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=rf"^{variable}: .*for example: {variable}=\S+$"):
        parse_settings([], {variable: value})


def test_an_unknown_flag_is_an_error() -> None:
    with pytest.raises(SettingsError, match="--fast"):
        parse_settings(["--fast"], {})


def test_a_port_in_use_is_said_with_its_mends(occupied: int) -> None:
    for variable in ("KAFKA_PORT", "HTTP_PORT", "PAGE_PORT"):
        (problem,) = problems(settings_of(**{variable: str(occupied)}))
        assert problem.startswith(f"port {occupied} is in use: ")
        assert f"{variable}=" in problem
        assert "\n" not in problem
    assert f"BOOTSTRAP=localhost:{occupied}" in next(problems(settings_of(KAFKA_PORT=str(occupied))))


def test_the_page_has_a_port_of_its_own() -> None:
    ports = free_ports()
    (problem,) = problems(settings_of(**ports | {"PAGE_PORT": ports["KAFKA_PORT"]}))
    assert problem == f"PAGE_PORT={ports['KAFKA_PORT']} is Kafka's or a worker's, too: choose another"


def test_with_a_broker_of_ones_own_its_port_does_not_matter(occupied: int) -> None:
    settings = settings_of(KAFKA_PORT=str(occupied), BOOTSTRAP=f"127.0.0.1:{occupied}")
    assert list(problems(settings)) == []


def test_a_broker_that_is_not_there_is_said() -> None:
    (problem,) = problems(settings_of(BOOTSTRAP=f"127.0.0.1:{free_port()}"))
    assert "no broker answers" in problem
    assert "BOOTSTRAP" in problem


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    (problem,) = problems(settings_of(DEMO_EVENTS=str(tmp_path / "none.csv")))
    assert problem == f"DEMO_EVENTS={tmp_path / 'none.csv'}: no such file"


def test_the_preflight_needs_no_environment(occupied: int) -> None:
    """`make demo` runs it before anything is installed: with site-packages switched off it still works."""
    command = [sys.executable, "-S", "-m", "demo.preflight"]
    environment = {"PATH": os.environ["PATH"]} | free_ports() | {"HTTP_PORT": str(occupied)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"demo: port {occupied} is in use")
    assert len(done.stderr.splitlines()) == 1


def test_two_demos_do_not_share_a_directory(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(SettingsError, match="another demo runs"), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_child_ends_when_the_user_asks_for_the_end(tmp_path: Path, how: signal.Signals) -> None:
    code = f"import os, time; os.kill(os.getppid(), {how.value}); time.sleep(60)"
    with Stop() as stop, pytest.raises(Stopped):
        run_to_end("sleeper", ["-c", code], stop, tmp_path / "log")
    assert "KeyboardInterrupt" in (tmp_path / "log").read_text()


def test_a_child_that_does_not_end_is_killed_and_named(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf'); time.sleep(60)"
    with Stop() as stop:
        child = Child("deaf", ["-c", code], tmp_path / "log")
        while "deaf" not in child.last_words():
            stop.wait(0.01)
    assert stop_all([child], 0.1) == [child]
    assert child.how_it_ended() == "killed by SIGKILL"
    assert child.last_words() == "deaf"


def test_the_wish_to_stop_may_come_at_any_moment() -> None:
    """The handler runs between any two steps of a wait. When both took a lock, Ctrl-C now and then hung the demo."""
    code = """
import contextlib, signal, sys
from demo.children import Stop, Stopped

def interrupted_at(step):
    steps = 0
    def trace(*_):
        nonlocal steps
        if steps == step:
            signal.raise_signal(signal.SIGINT)
        steps += 1
        return trace
    with Stop() as stop, contextlib.suppress(Stopped):
        sys.settrace(trace)
        try:
            stop.wait(0.001)
        finally:
            sys.settrace(None)
    return steps > step

step = 0
while interrupted_at(step):
    step += 1
assert step > 1
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=20)
