"""The broker dies, or falls silent, under load, and comes back: guarantee 7."""

import time
from pathlib import Path

import pytest

from tests.chaos.arena import LONG, SETTLE_S, Arena
from tests.worker.process import WorkerProcess, wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(3600 if LONG else 175)]

RECOVERY_S = 20
NOT_READY_S = 8  # the session timeout of 6 s, and what it takes to look
MOST_GROWTH_MB = 40
# How, for how long.
OUTAGES = [("kill", 5), ("kill", 30), ("pause", 30), ("kill", 300)] if LONG else [("kill", 5), ("pause", 10)]


def resident_mb(worker: WorkerProcess) -> float:
    """Memory of the process."""
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def watch_outage(workers: list[WorkerProcess], seconds: float) -> float:
    """Live, and soon not ready, until the broker returns. The most memory that one gained, MB."""
    start, before = time.monotonic(), [resident_mb(worker) for worker in workers]
    growth = 0.0
    while (passed := time.monotonic() - start) < seconds:
        for worker, mb in zip(workers, before, strict=True):
            assert worker.get("/livez")[0] == 200
            assert not (worker.ready() and passed > NOT_READY_S)
            growth = max(growth, resident_mb(worker) - mb)
        time.sleep(0.3)
    return growth


def test_a_broker_that_dies_or_falls_silent_stops_no_worker_and_loses_nothing(arena: Arena) -> None:
    broker, remarks = arena.broker, []
    workers = arena.two_workers()
    with arena.traffic(users=2000, rate=400) as traffic:
        for how, seconds in OUTAGES:
            wait_for("two partitions each", lambda: [one.partitions() for one in workers] == [2, 2], SETTLE_S)
            time.sleep(arena.rng.uniform(1, 2))  # amid the work
            (broker.kill if how == "kill" else broker.pause)()
            growth = watch_outage(workers, seconds)
            (broker.start if how == "kill" else broker.resume)()
            returned = time.monotonic()
            for worker in workers:
                worker.wait_ready()
            ready_s = time.monotonic() - returned
            traffic.pause()
            arena.expect_lists()
            lists_s = time.monotonic() - returned
            remarks.append(f"{how} {seconds} s: +{growth:.0f} MB, ready {ready_s:.1f} s, lists {lists_s:.1f} s after")
            assert growth < MOST_GROWTH_MB
            assert lists_s < RECOVERY_S
            traffic.flow()
        traffic.pause()
    arena.finish("broker away", f"{len(OUTAGES)} outages", "; ".join(remarks))
