"""Connections that are slow, lose what was said, fall silent or break, above all around the commit of a checkpoint."""

import time

import pytest

from tests.chaos.arena import LONG, SETTLE_S, Arena, sized
from tests.chaos.proxy import Faults, Proxy
from tests.worker.process import wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(3600 if LONG else 175)]


def test_a_broken_connection_around_the_commit_loses_and_doubles_nothing(arena: Arena, proxy: Proxy) -> None:
    schedules = sized(5, 100)
    workers = arena.two_workers("--checkpoint-interval-s", "0.2")
    with arena.traffic(users=500, rate=300) as traffic:
        for _ in range(schedules):
            proxy.faults = Faults.draw(arena.rng)
            time.sleep(arena.rng.uniform(1, sized(3, 4)))
            proxy.faults = None
            time.sleep(arena.rng.uniform(0, sized(1, 2)))
        for worker in workers:
            wait_for("ready", worker.ready, SETTLE_S)
        traffic.pause()
    faults = ", ".join(f"{kind} {count}" for kind, count in sorted(proxy.counts.items()))
    arena.finish("broken connections", f"{schedules} schedules", faults)
    assert proxy.counts.total() >= schedules
