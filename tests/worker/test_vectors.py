"""The cache of vectors and rings against a plain dict in order of use."""

import random
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stream_worker.manifest import RING_NEW, RING_PLACES
from stream_worker.vectors import NONE, VectorCache, updated

SIZE = 3
SHAPES = {"vector": (SIZE,)}


class Users:
    """Who hold keys of a cache."""

    def __init__(self, most: int | None, users: int) -> None:
        self.cache = VectorCache(SHAPES, most)
        self.keys = np.full(users, NONE, np.int64)

    def keep(self, rows: Any, value: float) -> None:
        slots_B = self.cache.find(self.keys[rows])
        given = {"updated_vector": np.full((len(slots_B) + 1, SIZE), value, np.float32)}  # one row of padding
        self.keys[rows] = self.cache.keep(slots_B, given)

    def held(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Rows of users of whom something is kept, and all their vectors."""
        slots_B = self.cache.find(self.keys)
        return np.flatnonzero(slots_B), self.cache.take(slots_B, len(slots_B))["vector"]


def test_it_keeps_the_vectors_that_were_kept_last(seed: int) -> None:
    rng, most = random.Random(seed), 20
    users, kept = Users(most, 50), OrderedDict[int, float]()
    for step in range(1, 300):
        rows = rng.sample(range(50), rng.choice([1, 2, 7, 20]))
        users.keep(rows, step)
        for row in rows:
            kept[row] = step
            kept.move_to_end(row)
        last = min(kept.values()) if len(kept) <= most else sorted(kept.values())[-most]
        for row in [row for row, then in kept.items() if then < last]:
            del kept[row]
        slots_B = users.cache._key[users.keys & (2**28 - 1)] == users.keys  # noqa: SLF001 - find() would count as use
        have = np.flatnonzero(slots_B & (users.keys != NONE))
        assert len(have) <= most
        # Of those kept in one step, any may go first.
        assert all(kept.get(row, 0) >= last for row in have.tolist())
        assert set(rows) <= set(have.tolist())
    have, vector_BS = users.held()
    assert (vector_BS[have, 0] == [kept[row] for row in have.tolist()]).all()
    assert (np.delete(vector_BS, have, 0) == 0).all()


def test_a_step_larger_than_the_cache_keeps_what_fits() -> None:
    users = Users(4, 10)
    users.keep(range(10), 1)
    assert (users.keys != NONE).sum() == 4
    have, vector_BS = users.held()
    assert len(have) == 4
    assert vector_BS[have].tolist() == [[1.0] * SIZE] * 4


def test_who_is_found_in_a_step_is_not_evicted_in_it() -> None:
    users = Users(2, 4)
    users.keep([0, 1], 1)
    slots_B = users.cache.find(users.keys[[0, 1, 2]])
    (none,) = users.cache.keep(slots_B[2:], {"updated_vector": np.full((1, SIZE), 2, np.float32)})
    assert none == NONE
    assert users.cache.take(slots_B[:2], 2)["vector"].tolist() == [[1.0] * SIZE] * 2


def test_users_who_are_gone_leave_their_slots() -> None:
    users = Users(4, 5)
    users.keep(range(4), 1)
    gone = int(users.keys[1])
    users.cache.release(gone)
    users.cache.release(gone)  # a second time it is nobody's
    users.keep([4], 2)
    have, vector_BS = users.held()
    assert have.tolist() == [0, 2, 3, 4], "nobody else had to go"
    assert vector_BS[:, 0].tolist() == [1, 0, 1, 1, 2]


@pytest.mark.parametrize("most", [None, 1000])
def test_it_grows_as_far_as_it_may(most: int | None) -> None:
    users = Users(most, 3000)
    for first in range(0, 3000, 100):
        users.keep(range(first, first + 100), first)
    have, vector_BS = users.held()
    assert len(have) == (most or 3000)
    assert vector_BS[2999].tolist() == [2900.0] * SIZE


def test_of_rings_the_places_of_new_events_are_written(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shapes = {"vector": (2,), "ring_a": (4, 3), "ring_b": (4, 2)}
    cache = VectorCache(shapes)
    keys_B = np.full(6, NONE, np.int64)
    plain = {name: np.zeros((6, *shape), np.float32) for name, shape in shapes.items()}
    for _ in range(20):
        rows = rng.permutation(6)[: rng.integers(1, 7)]
        new = int(rng.integers(1, 4))
        outputs: dict[str, NDArray[Any]] = {"items": rows}
        outputs["updated_vector"] = rng.normal(size=(len(rows), 2)).astype(np.float32)
        outputs["ring_places"] = np.stack([rng.permutation(6)[:new] for _ in rows])  # 4 and 5 are none
        for name, size in (("ring_a", 3), ("ring_b", 2)):
            outputs[f"{name}_new"] = rng.normal(size=(len(rows), new, size)).astype(np.float32)
        for b, row in enumerate(rows.tolist()):
            plain["vector"][row] = outputs["updated_vector"][b]
            for m, place in enumerate(outputs["ring_places"][b].tolist()):
                if place < 4:
                    for name in ("ring_a", "ring_b"):
                        plain[name][row, place] = outputs[f"{name}_new"][b, m]
        slots_B = cache.find(keys_B[rows])
        before = {name: array.copy() for name, array in cache.take(slots_B, len(rows)).items()}
        keys_B[rows] = cache.keep(slots_B, outputs)
        after = updated(before, outputs)
        found = cache.take(cache.find(keys_B), 6)
        for name in shapes:
            held = np.flatnonzero(keys_B)
            assert (found[name][held] == plain[name][held]).all()
            assert (after[name] == plain[name][rows]).all()


def test_half_precision_halves_the_memory_of_rings_and_leaves_vectors_alone() -> None:
    shapes = {"vector": (8,), "ring_a": (4, 128)}
    whole, half = VectorCache(shapes), VectorCache(shapes, precision="float16")
    rng = np.random.default_rng(0)
    outputs: dict[str, NDArray[Any]] = {
        "updated_vector": rng.normal(size=(60, 8)).astype(np.float32),
        RING_PLACES: np.tile(np.arange(4), (60, 1)),
        f"ring_a{RING_NEW}": rng.normal(size=(60, 4, 128)).astype(np.float32),
    }
    for cache in (whole, half):
        keys_B = cache.keep(np.zeros(60, np.intp), outputs)
        found = cache.take(cache.find(keys_B), 60)
        assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
        assert (found["vector"] == outputs["updated_vector"]).all(), "what is added up must not be rounded"
        rounding = 0 if cache is whole else 1e-3
        np.testing.assert_allclose(found["ring_a"], outputs[f"ring_a{RING_NEW}"], rtol=rounding, atol=1e-6)
    assert half.nbytes < 0.55 * whole.nbytes
