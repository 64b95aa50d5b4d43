"""A model that keeps a vector of each user: updated with what is new, rebuilt from the history when it must be."""

import random

import numpy as np
import pytest

from stream_worker.bundle import Bundle
from stream_worker.messages import TopK
from tests.worker.conftest import ITEMS, LENGTH
from tests.worker.world import World


def same(one: TopK, other: TopK) -> None:
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4, atol=1e-4)
    assert one.events == other.events


@pytest.mark.parametrize("keeping", ["gru4rec", "mf", "streaming-transformer"], indirect=True)
def test_a_list_is_the_same_whether_events_came_one_by_one_or_the_worker_was_new(keeping: Bundle, seed: int) -> None:
    rng = random.Random(seed)
    one_by_one, at_once = World(keeping), World(keeping)
    users = [f"u{number}" for number in range(6)] * (LENGTH - 1)  # all of a history is within the model's window
    rng.shuffle(users)
    for second, user in enumerate(users, start=10):
        late, item = rng.choice([0, 0, 0, -7]), f"i{rng.randrange(ITEMS + 5)}"
        for world in (one_by_one, at_once):
            world.event(user, item, 0, (second + late) * 4)
        if rng.random() < 0.6:
            one_by_one.settle()
    one_by_one.settle()
    at_once.settle()
    assert len(one_by_one.lists()) > len(at_once.lists()) == 6
    lists = one_by_one.newest()
    for user, top in at_once.newest().items():
        same(lists[user], top)

    one_by_one.restart()
    for user in lists:
        for world in (one_by_one, at_once):
            world.event(user, "i3", 0, second * 4 + 20)
    one_by_one.settle()
    at_once.settle()
    after = at_once.newest()
    for user, top in one_by_one.newest().items():
        same(top, after[user])


@pytest.mark.parametrize("keeping", ["gru4rec", "streaming-transformer"], indirect=True)
def test_a_cache_that_is_too_small_costs_time_and_changes_no_list(keeping: Bundle, seed: int) -> None:
    rng = random.Random(seed)
    large, small = World(keeping), World(keeping, vector_cache_users=2)
    users = [f"u{number}" for number in range(6)] * (LENGTH - 1)  # as above
    rng.shuffle(users)
    for second, user in enumerate(users):
        item = f"i{rng.randrange(ITEMS)}"
        for world in (large, small):
            world.event(user, item, 0, second * 4)
            world.settle()
    for user, top in small.newest().items():
        same(large.newest()[user], top)
