"""The demo's workers, each of which can be killed and brought back while the stream goes on."""

import queue
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from demo.children import Child, stop_all

STOP_S = 10.0


class Worker:
    """One place in the team, and the process that holds it now: started here, as a user starts it.

    Args:
        number, port, log: which one, where its /metrics are, and what takes its output.
        command: arguments of Python.
    """

    def __init__(self, number: int, port: int, log: Path, command: Sequence[str]) -> None:
        self.number = number
        self.name = f"worker {number}"
        self.port = port
        self._log = log
        self._command = command
        self.child = Child(self.name, command, log)
        self.killed = False  # on purpose, and not brought back yet
        self.since = time.monotonic()  # its last start, or its end by `kill`

    @property
    def runs(self) -> bool:
        """Whether its process does."""
        return self.child.returncode is None

    def start_again(self) -> None:
        """Another life; the log goes on."""
        self.child = Child(self.name, self._command, self._log, keep_log=True)
        self.killed, self.since = False, time.monotonic()


class Team:
    """All of them.

    `kill` and `ask_back` may be called by any thread. Only the main thread starts processes, in `do_errands`: Linux
    ends a process with the *thread* that started it, when it is to be ended with its parent (`Child`).

    Args:
        commands: for each worker the port of its /metrics, its log, and its arguments of Python.
    """

    def __init__(self, commands: Sequence[tuple[int, Path, Sequence[str]]]) -> None:
        self._lock = threading.Lock()
        self._errands: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self.workers: list[Worker] = []
        try:
            for number, (port, log, command) in enumerate(commands, start=1):
                self.workers.append(Worker(number, port, log, command))
        except BaseException:
            self.stop()
            raise

    def kill(self, number: int) -> bool:
        """`kill -9`; returns when the process is gone, or False if there was none to kill.

        Raises:
            KeyError: there is no worker of that number.
        """
        worker = self._worker(number)
        with self._lock:
            if not worker.runs:
                return False
            worker.killed = True
            worker.child.ask(signal.SIGKILL)
            worker.child.join(STOP_S)
            worker.since = time.monotonic()
        return True

    def ask_back(self, number: int) -> bool:
        """Have a worker started again that runs no more; soon, by the main thread. False if it runs.

        Raises:
            KeyError: there is no worker of that number.
        """
        worker = self._worker(number)
        if worker.runs:
            return False
        self._errands.put(worker)
        return True

    def do_errands(self) -> list[Worker]:
        """Start who is asked back. Returns them."""
        started = []
        while not self._errands.empty():
            worker = self._errands.get()
            with self._lock:
                if not worker.runs:  # two browsers may have asked
                    worker.start_again()
                    started.append(worker)
        return started

    @property
    def lost(self) -> bool:
        """Whether nobody runs, and nobody wanted that."""
        return not any(worker.runs or worker.killed for worker in self.workers)

    def stop(self) -> None:
        """An orderly end for all."""
        stop_all([worker.child for worker in self.workers], STOP_S)

    def _worker(self, number: int) -> Worker:
        for worker in self.workers:
            if worker.number == number:
                return worker
        raise KeyError(number)
