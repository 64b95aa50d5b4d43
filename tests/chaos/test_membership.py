"""Workers that come and go while others restore."""

import json
import time
from collections.abc import Callable

import pytest

from tests.chaos.arena import LONG, SETTLE_S, Arena, sized
from tests.worker.process import WorkerProcess, wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(3600 if LONG else 175)]

MOST_WORKERS = 4
LONGEST_S = 30  # session timeout + transaction timeout + restore, and some rebalances on top


class Watch:
    """For how long each partition's position has not moved though events were waiting."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._positions: dict[int, int] = {}
        self._moved_at = dict.fromkeys(range(arena.partitions), time.monotonic())
        self.longest_s = 0.0

    def look_until(self, done: Callable[[], bool]) -> None:
        """Look again and again until then."""
        while not done():
            ends = self._arena.ends()
            for number, position in self._arena.committed().items():
                if position != self._positions.get(number) or position == ends[number]:
                    self._moved_at[number] = time.monotonic()
                self._positions[number] = position
            self.longest_s = max(self.longest_s, *(time.monotonic() - at for at in self._moved_at.values()))
            time.sleep(0.1)


def longest_restore_s(arena: Arena) -> float:
    """Of all that came to their end, as the workers tell."""
    lines = [line for worker in arena.workers for line in worker.log.read_text().splitlines()]
    return max(float(json.loads(line)["seconds"]) for line in lines if '"event": "restored"' in line)


def fill(arena: Arena) -> None:
    """Make a changelog that takes a while to read."""
    users, events = sized(4000, 20_000), sized(20_000, 200_000)
    worker = arena.worker("--checkpoint-interval-s", "0.3")
    with arena.traffic(users, rate=10_000) as traffic:
        wait_for("enough events", lambda: traffic.sent >= events, SETTLE_S)
        traffic.pause()
    arena.caught_up()
    worker.terminate()


def change(arena: Arena, members: list[WorkerProcess]) -> None:
    """One worker more, or one less, in order or not."""
    started = [worker for worker in members if "model is warm" in worker.log.read_text()]
    kind = arena.rng.random()
    if not started or len(members) == 1 or (kind < 0.5 and len(members) < MOST_WORKERS):
        members.append(arena.worker(ready=False))
        return
    one = arena.rng.choice(started)
    members.remove(one)
    (one.kill if kind > 0.85 else one.process.terminate)()


def test_workers_that_come_and_go_during_restores_crash_nothing_and_halt_nothing(arena: Arena) -> None:
    changes = sized(10, 50)
    fill(arena)
    members = [arena.worker(ready=False)]
    with arena.traffic(users=2000, rate=300) as traffic:
        watch = Watch(arena)
        for _ in range(changes):
            until = time.monotonic() + arena.rng.uniform(0.2, sized(2, 4))
            watch.look_until(lambda until=until: time.monotonic() > until)  # type: ignore[misc]
            change(arena, members)
        # Until here a partition may have lost one owner after the other before its restore ended.
        halted_s, last_change = watch.longest_s, time.monotonic()
        before = arena.committed()
        watch.look_until(lambda: all(position > before[number] for number, position in arena.committed().items()))
        watch.look_until(lambda: all(worker.ready() for worker in members))
        settled_s = time.monotonic() - last_change
        traffic.pause()
    restore_s = longest_restore_s(arena)
    remarks = f"restores {restore_s:.1f} s at most, all in order {settled_s:.1f} s after the last change"
    arena.finish("joins and leaves", f"{changes} changes", f"{remarks}; longest halt amid them {halted_s:.1f} s")
    assert settled_s < LONGEST_S
    assert restore_s < LONGEST_S
