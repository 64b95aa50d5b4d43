"""Workers that die at random moments, under load: guarantees 1 and 2."""

import time

import pytest

from tests.chaos.arena import LONG, Arena, sized
from tests.worker.process import WorkerProcess

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(3600 if LONG else 175)]

INTERVALS_S = ("1", "1", "0.3", "0.1")  # of checkpoints


def start(arena: Arena) -> WorkerProcess:
    """One more worker, not awaited."""
    return arena.worker("--checkpoint-interval-s", arena.rng.choice(INTERVALS_S), ready=False)


def test_after_kills_at_random_moments_every_state_and_list_is_exact(arena: Arena) -> None:
    kills = sized(10, 100)
    rng = arena.rng
    with arena.traffic(users=sized(3000, 20_000), rate=sized(700, 1000)) as traffic:
        workers = arena.two_workers()
        for _ in range(kills):
            # Soon after a start in the join or the restore; later while lists and checkpoints go out.
            time.sleep(rng.choice([rng.uniform(0, 1.5), rng.uniform(1.5, sized(4, 6))]))
            place = rng.randrange(2)
            assert workers[place].process.poll() is None, workers[place].log.read_text()
            workers[place].kill()
            workers[place] = start(arena)
        for worker in workers:
            worker.wait_ready()
        traffic.pause()
    arena.finish("kill -9 of a worker", f"{kills} kills", f"{traffic.sent:,} sent")
