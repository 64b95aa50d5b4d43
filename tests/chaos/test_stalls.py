"""Workers that stop for longer than their session and then go on, thinking nothing has happened: guarantee 8."""

import signal
import time

import pytest

from tests.chaos.arena import LONG, SETTLE_S, Arena, sized
from tests.chaos.traffic import Traffic
from tests.worker.process import WorkerProcess, wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(3600 if LONG else 175)]

SESSION_S = 6


def stall(arena: Arena, traffic: Traffic, sleeper: WorkerProcess, other: WorkerProcess, *, until_taken: bool) -> None:
    """Stop a worker amid its work, let its partitions move or nearly, and wake it when nobody else would correct it."""
    time.sleep(arena.rng.uniform(0.5, 2))
    sleeper.process.send_signal(signal.SIGSTOP)
    if until_taken:
        wait_for("the other takes all", lambda: other.partitions() == 4 and other.ready(), SETTLE_S)
        traffic.pause()
        arena.caught_up()
    else:  # about when its session ends and its last records become too old
        time.sleep(arena.rng.uniform(0.7, 1.1) * SESSION_S)
        traffic.pause()
    sleeper.process.send_signal(signal.SIGCONT)


def test_a_worker_that_slept_writes_no_stale_state_and_no_stale_list(arena: Arena) -> None:
    stalls = sized(3, 20)
    workers = arena.two_workers()
    with arena.traffic(users=60, rate=400) as traffic:
        for number in range(stalls):
            sleeper, other = arena.rng.sample(workers, 2)
            stall(arena, traffic, sleeper, other, until_taken=number % 3 != 1)
            arena.caught_up()
            wait_for("two partitions each", lambda: [one.partitions() for one in workers] == [2, 2], SETTLE_S)
            for worker in workers:
                worker.wait_ready()
            arena.expect_lists()
            traffic.flow()
        traffic.pause()
    arena.finish("SIGSTOP of a worker", f"{stalls} stalls")
