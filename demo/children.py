"""The processes that the demo starts: each in a session of its own, ended by its pid, and never left behind.

The terminal's Ctrl-C goes to the demo alone, which then stops the others in order.
"""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Self

from demo.broker import with_parent_death_signal

CHECK_S = 0.05  # between two looks at a child or at the user's wish to stop
INTERRUPT_S = 5.0  # for a child that is told to stop before it is done


class Stopped(Exception):  # noqa: N818
    """The user has asked for the end; no error."""


class Stop:
    """The user's wish to stop: Ctrl-C or SIGTERM while the `with` lasts. It may come at any time, also twice.

    A pipe, not a `threading.Event`: the handler runs between any two steps of this very thread, which may just then
    hold the event's lock; both would wait for ever.
    """

    def __enter__(self) -> Self:
        """Listen."""
        self._asked, self._ask = os.pipe()
        os.set_blocking(self._ask, False)
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        """Listen no more."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._asked)
        os.close(self._ask)

    def wait(self, seconds: float) -> None:
        """Wait so long.

        Raises:
            Stopped: the wish is there, or has come meanwhile.
        """
        if select.select([self._asked], [], [], seconds)[0]:
            raise Stopped

    def _handle(self, *_: object) -> None:
        with suppress(BlockingIOError):  # full of wishes
            os.write(self._ask, b".")


class Child:
    """One process. `log` takes its output, after what it holds if we keep that; without one it writes where we do."""

    def __init__(self, name: str, arguments: Sequence[str], log: Path | None = None, keep_log: bool = False) -> None:
        self.name = name
        self.log = log
        with _opened(log, keep_log) as output:
            self._process = subprocess.Popen(
                [*with_parent_death_signal("TERM"), sys.executable, *arguments],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                env=os.environ | {"ORT_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; the negative signal number if one has ended it."""
        return self._process.poll()

    def ask(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal, and do not wait."""
        if self.returncode is None:
            self._process.send_signal(number)

    def join(self, seconds: float) -> bool:
        """Wait for its end; at the deadline SIGKILL. Returns whether it ended by itself."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False
        return True

    def last_words(self) -> str:
        """The last line of its log that says something."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")

    def how_it_ended(self) -> str:
        """Its exit code or signal, in words."""
        code = self.returncode
        if code is None:
            return "still runs"
        return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def run_to_end(name: str, arguments: Sequence[str], stop: Stop, log: Path | None = None) -> Child:
    """Run a process and wait for it, whatever its exit code.

    Raises:
        Stopped: the user asked for the end; the process has ended, too.
    """
    child = Child(name, arguments, log)
    try:
        while child.returncode is None:
            stop.wait(CHECK_S)
    except BaseException:
        # SIGINT: Python programs then clean up, and end their own children.
        child.ask(signal.SIGINT)
        child.join(INTERRUPT_S)
        raise
    return child


def stop_all(children: Iterable[Child], seconds: float) -> list[Child]:
    """SIGTERM to all at once, then wait for each. Returns those that had to be killed."""
    running = [child for child in children if child.returncode is None]
    for child in running:
        child.ask()
    return [child for child in running if not child.join(seconds)]


@contextmanager
def _opened(log: Path | None, keep: bool) -> Iterator[IO[bytes] | None]:
    if log is None:
        yield None
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab" if keep else "wb") as file:
        yield file
