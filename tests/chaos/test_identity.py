"""Static members restart without a rebalance, a stranger under one's name fences, a dead worker is replaced in time."""

import re
import time

import pytest

from tests.chaos.arena import LONG, SETTLE_S, Arena, sized
from tests.chaos.waits import waits
from tests.worker.process import CLIENTS, WorkerProcess, wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(3600 if LONG else 175)]

# Session timeout, transaction timeout, the broker's look at it, and some seconds for the restore on a busy machine.
TAKEOVER_S = 6 + 15 + 1 + 8


def named(arena: Arena, name: str, session_s: int = 15) -> WorkerProcess:
    """A static member, not awaited; its session outlives a slow start."""
    return arena.worker("--group-instance-id", name, "--session-timeout-s", str(session_s), ready=False)


def group_log(arena: Arena) -> list[str]:
    """What the broker's coordinator says about the group."""
    return [line for line in arena.broker.log.read_text().splitlines() if arena.group in line]


def generation(arena: Arena) -> int:
    """The group's, as the broker's log tells."""
    found = re.findall(r"Stabilized group \S+ generation (\d+)", "\n".join(group_log(arena)))
    return int(found[-1]) if found else 0


def settled(arena: Arena, workers: list[WorkerProcess]) -> bool:
    """Whether all partitions are served, and no rebalance follows the last one."""
    if sorted(served(workers)) != [1, 1, 2]:
        return False
    before = generation(arena)
    time.sleep(2)
    return before == generation(arena)


def served(workers: list[WorkerProcess]) -> list[int]:
    """How many partitions each serves, completely restored."""
    return [worker.partitions() if worker.ready() else 0 for worker in workers]


def test_a_rolling_restart_of_static_members_keeps_the_generation(arena: Arena) -> None:
    rounds = sized(1, 3)
    names = [f"{arena.group}-{number}" for number in range(3)]
    workers = [named(arena, name) for name in names]
    wait_for("all partitions", lambda: settled(arena, workers), SETTLE_S)
    before = generation(arena)
    with arena.traffic(users=500, rate=300) as traffic:
        for _ in range(rounds):
            for place, name in reversed(list(enumerate(names))):  # as a StatefulSet does it
                held = workers[place].partitions()
                code, _ = workers[place].terminate()
                assert code == 0
                workers[place] = named(arena, name)
                wait_for("the same partitions", lambda: served(workers)[place] == held, SETTLE_S)  # noqa: B023
        assert generation(arena) == before, "\n".join(group_log(arena))
        traffic.pause()
    arena.caught_up()
    waited = waits(arena)
    assert len(waited) > 0.8 * traffic.sent
    assert waited[-1] < 15, "a partition was given away, or waited for a session"
    said = f"generation {before} all the time; event to list p50 {waited[len(waited) // 2] * 1000:.0f} ms"
    said += f", p99 {waited[len(waited) * 99 // 100]:.1f} s, {waited[-1]:.1f} s at most"
    arena.finish("rolling restarts", f"{rounds} x 3 restarts", said)


def test_the_survivor_takes_over_in_time(arena: Arena) -> None:
    kills = sized(1, 5)
    took: list[float] = []
    workers = arena.two_workers()
    with arena.traffic(users=1000, rate=300) as traffic:
        for _ in range(kills):
            time.sleep(arena.rng.uniform(1, 2))
            victim, survivor = arena.rng.sample(workers, 2)
            victim.kill()
            killed = time.monotonic()
            wait_for("all partitions", lambda: served([survivor]) == [4], SETTLE_S)  # noqa: B023
            took.append(time.monotonic() - killed)
            if len(took) < kills:
                workers = [survivor, arena.worker()]
                wait_for("two partitions each", lambda: served(workers) == [2, 2], SETTLE_S)  # noqa: B023
        traffic.pause()
    arena.finish("takeover", f"{kills} kills", f"{', '.join(f'{seconds:.1f}' for seconds in took)} s")
    assert max(took) < TAKEOVER_S


@pytest.mark.parametrize("arena", CLIENTS, indirect=True)
@pytest.mark.parametrize("idle", [False, True] if LONG else [True], ids=lambda idle: "idle" if idle else "under load")
def test_a_second_process_of_the_same_name_fences_the_first(arena: Arena, *, idle: bool) -> None:
    first = named(arena, "one")
    first.wait_ready()
    arena.send([("u1", "i1")])
    arena.expect_lists()
    with arena.traffic(users=50, rate=100) as traffic:
        if idle:
            traffic.pause()
        second = named(arena, "one")
        assert first.process.wait(SETTLE_S) == 5
        second.wait_ready()
        traffic.pause()
    assert "another process" in first.log.read_text().strip().splitlines()[-1]
    arena.caught_up()
    second.terminate()
    arena.workers.remove(first)  # it has ended as it should
    first.kill()
    arena.finish("two of one name", "idle" if idle else "under load")
