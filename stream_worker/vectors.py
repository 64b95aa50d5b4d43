"""What a model keeps of users, such as a vector: a cache with a bound, as all of it can be made anew.

A user's owner holds a *key*: the slot, and a number that tells whether the slot is still this user's. So nobody need be
told when a slot goes to somebody else.

Axes: C capacity in slots, B users of a batch, M new events, R places of a ring, E floats of a place.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stream_worker.manifest import RING_NEW, RING_PLACES
from stream_worker.slabs import Eldest, grow

VECTOR = "vector"  # what is no ring
NONE = 0  # the key and slot of everybody of whom nothing is kept; it stays zero
FIRST_SLOTS = 64
GROWTH_BYTES = 2**26  # slabs double up to this, and then grow by it
DEFAULT_BYTES = 2**28  # of a cache whose bound is not given in users
NEVER = 2**62  # a slot that is free: nobody to evict
SLOT_BITS = 28  # of a key; above them is the number of the claim
CLAIMS = 2 ** (63 - SLOT_BITS)  # after so many the numbers begin again

Precision = Literal["float32", "float16"]
Arrays = dict[str, NDArray[Any]]


class VectorCache:
    """Slots with an array of each shape; when all are taken, those kept the longest ago go.

    Args:
        shapes: what is kept of a user, by name: `vector` and rings, as the manifest has them.
        most: slots; None for as many as fit into `DEFAULT_BYTES`.
        precision: of rings at rest; half of it halves the memory. A vector stays as it is: a model may add to it event
            by event, and what is less than half a step would be lost for ever.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], most: int | None = None, precision: Precision = "float32"
    ) -> None:
        kinds = {name: np.dtype("float32" if name == VECTOR else precision) for name in shapes}
        self.slot_bytes = max(1, sum(kinds[name].itemsize * math.prod(shape) for name, shape in shapes.items()))
        self.most = max(1, DEFAULT_BYTES // self.slot_bytes) if most is None else most
        self._slabs: Arrays = {name: np.zeros((1, *shape), kinds[name]) for name, shape in shapes.items()}
        self._key = np.zeros(1, np.int64)
        self._kept_at = np.full(1, NEVER, np.int64)
        self._claims = 0
        self._steps = 0
        self._used = 1
        self._free: list[int] = []
        self._eldest = Eldest()
        self._feeds: Arrays = {}
        self._batch = 0  # users there is room for in them

    @property
    def nbytes(self) -> int:
        """Bytes of the slabs."""
        return sum(slab.nbytes for slab in (*self._slabs.values(), self._key, self._kept_at))

    def find(self, keys_B: NDArray[np.int64]) -> NDArray[np.intp]:
        """The slots of these users, which they keep until the next call; `NONE` of whom nothing is kept any more."""
        slots_B: NDArray[np.intp] = (keys_B & (2**SLOT_BITS - 1)).astype(np.intp)
        slots_B[self._key[slots_B] != keys_B] = NONE
        self._steps += 1
        self._kept_at[slots_B] = self._steps
        self._kept_at[NONE] = NEVER
        return slots_B

    def take(self, slots_B: NDArray[np.intp], batch: int) -> Arrays:
        """Copies of these slots, float32 [batch, …], by name; zeros for `NONE` and in rows beyond.

        They are overwritten by the next call.
        """
        feeds, at_B = self._room_for(batch), np.zeros(batch, np.intp)
        at_B[: len(slots_B)] = slots_B
        for name, slab in self._slabs.items():
            if slab.dtype == np.float32:
                np.take(slab, at_B, 0, feeds[name], mode="clip")  # the mode that takes no detour by a buffer
            else:
                feeds[name][:] = slab[at_B]
        return feeds

    def _room_for(self, batch: int) -> Arrays:
        if batch > self._batch:
            self._batch = batch
            self._feeds = {name: np.empty((batch, *slab.shape[1:]), np.float32) for name, slab in self._slabs.items()}
        return {name: array[:batch] for name, array in self._feeds.items()}

    def keep(self, slots_B: NDArray[np.intp], outputs: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
        """Keep what the graph gave these users, who are different ones.

        Args:
            slots_B: those that they have, as `find` and `take` know them.
            outputs: of the graph; rows beyond the users are not looked at.

        Returns:
            Their keys, `NONE` where the cache is smaller than what was asked for in one step.
        """
        slots_B = slots_B.copy()
        for b in np.flatnonzero(slots_B == NONE).tolist():
            slot = self._claim()
            if slot == NONE:
                eldest = self._eldest.pop(self._kept_at[: self._used], self._steps)
                if eldest is None:  # all are of this step
                    break
                slot = eldest
            self._claims = (self._claims + 1) % CLAIMS
            slots_B[b], self._kept_at[slot] = slot, self._steps
            self._key[slot] = self._claims << SLOT_BITS | slot
        write(self._slabs, slots_B, np.flatnonzero(slots_B), outputs)
        return self._key[slots_B]

    def release(self, key: int) -> None:
        """The user with this key is gone."""
        slot = key & (2**SLOT_BITS - 1)
        if slot != NONE and self._key[slot] == key:
            self._kept_at[slot] = NEVER
            self._key[slot] = NONE
            self._free.append(slot)

    def _claim(self) -> int:
        """A slot that nobody has, `NONE` if there is none."""
        if self._free:
            return self._free.pop()
        if self._used > self.most:
            return NONE
        if self._used == len(self._key):
            self._grow()
        self._used += 1
        return self._used - 1

    def _grow(self) -> None:
        slots = len(self._key)
        step = max(1, GROWTH_BYTES // self.slot_bytes)
        grow((*self._slabs.values(), self._key, self._kept_at), slots, FIRST_SLOTS, step, self.most + 1)
        self._kept_at[slots:] = NEVER


def nothing(shapes: Mapping[str, tuple[int, ...]], users: int) -> Arrays:
    """What is kept of users of whom nothing is: zeros, float32 [B, …], by name."""
    return {name: np.zeros((users, *shape), np.float32) for name, shape in shapes.items()}


def write(
    slabs: Arrays, slots_B: NDArray[np.intp], users_b: NDArray[np.intp], outputs: Mapping[str, NDArray[Any]]
) -> None:
    """Put what a graph gave these of its users into their slots: the vector, and of rings the places of new events."""
    for name, slab_CRE in slabs.items():
        if name == VECTOR:
            slab_CRE[slots_B[users_b]] = outputs["updated_vector"][users_b]
            continue
        places_bM = outputs[RING_PLACES][users_b]
        b, m = np.nonzero(places_bM < slab_CRE.shape[1])
        slab_CRE[slots_B[users_b[b]], places_bM[b, m]] = outputs[f"{name}{RING_NEW}"][users_b[b], m]


def updated(kept: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]) -> Arrays:
    """What is kept of a batch of users [B, …] after a run of the graph."""
    copies = {name: array.copy() for name, array in kept.items()}
    users_B = np.arange(len(outputs["items"]))
    write(copies, users_B, users_B, outputs)
    return copies
