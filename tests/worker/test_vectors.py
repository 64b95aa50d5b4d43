"""The cache of vectors against a plain dict in order of use."""

import random
from collections import OrderedDict

import numpy as np
import pytest

from stream_worker.state import ALL_UNSEEN, Partition
from stream_worker.vectors import NONE, VectorCache

SIZE = 3


def partition(most: int | None, users: int) -> Partition:
    state = Partition(0, 4, 0, 2, vectors=VectorCache(SIZE, most))
    for user in range(users):
        state._add(f"u{user}")  # noqa: SLF001 - rows in order, without an event
    return state


def test_it_keeps_the_vectors_that_were_kept_last(seed: int) -> None:
    rng, most, users = random.Random(seed), 20, 50
    state, kept = partition(most, users), OrderedDict[int, float]()
    for step in range(1, 300):
        rows = rng.sample(range(users), rng.choice([1, 2, 7, 20]))
        state.keep_vectors(rows, np.full((len(rows), SIZE), step, np.float32))
        for row in rows:
            kept[row] = step
            kept.move_to_end(row)
        last = min(kept.values()) if len(kept) <= most else sorted(kept.values())[-most]
        for row in [row for row, then in kept.items() if then < last]:
            del kept[row]
        held = state.vectors(range(users))
        have = np.flatnonzero(state.vector_slot[:users] != NONE)
        assert len(have) <= most
        # Of those kept in one step, any may go first.
        assert all(kept.get(row, 0) >= last for row in have.tolist())
        assert (held.vector_BS[have, 0] == [kept[row] for row in have.tolist()]).all()
        assert (held.unseen_B[have] == 0).all()
        assert set(rows) <= set(have.tolist())
    lost = np.flatnonzero(state.vector_slot[:users] == NONE)
    assert (state.vectors(lost).vector_BS == 0).all()


def test_a_batch_larger_than_the_cache_keeps_what_fits() -> None:
    state = partition(4, 10)
    state.keep_vectors(range(10), np.ones((10, SIZE), np.float32))
    assert (state.vector_slot[:10] != NONE).sum() == 4
    assert sorted(state.unseen[:10].tolist()) == [0] * 4 + [ALL_UNSEEN] * 6


def test_users_who_are_gone_leave_their_slots() -> None:
    state = partition(4, 4)
    state.keep_vectors(range(4), np.ones((4, SIZE), np.float32))
    state.forget("u1")
    new = state._add("new")  # noqa: SLF001
    assert state.vector_slot[new] == NONE
    assert (state.vectors([new]).vector_BS == 0).all()
    state.keep_vectors([new], np.full((1, SIZE), 2, np.float32))
    assert (state.vector_slot[:4] != NONE).all(), "nobody had to go"


@pytest.mark.parametrize("most", [None, 1000])
def test_it_grows_as_far_as_it_may(most: int | None) -> None:
    state = partition(most, 3000)
    for first in range(0, 3000, 100):
        rows = range(first, first + 100)
        state.keep_vectors(rows, np.full((100, SIZE), first, np.float32))
    assert (state.vector_slot[:3000] != NONE).sum() == (most or 3000)
    assert state.vectors([2999]).vector_BS.tolist() == [[2900.0] * SIZE]


def test_half_precision_halves_the_memory_and_rounds() -> None:
    whole, half = VectorCache(512), VectorCache(512, precision="float16")
    rows = np.arange(60, dtype=np.int32)
    vector_BS = np.random.default_rng(0).normal(size=(60, 512)).astype(np.float32)
    for cache in (whole, half):
        slots, _ = cache.keep(np.zeros(60, np.int32), rows, vector_BS)
        found = cache.take(slots)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, vector_BS, rtol=0 if cache is whole else 1e-3, atol=1e-6)
    assert half.nbytes < 0.52 * whole.nbytes
