"""The vectors that a model keeps of a partition's users: a cache with a bound, as all of them can be made anew.

Axes: C capacity in slots, S size of a user's vector, B users of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stream_worker.slabs import Eldest, grow

NONE = 0  # the slot of everybody without a vector; it stays zero
FIRST_SLOTS = 64
GROWTH_BYTES = 2**26  # slabs double up to this, and then grow by it
DEFAULT_BYTES = 2**28  # of a cache whose bound is not given in users
NEVER = 2**62  # a slot that is free: nobody to evict

Precision = Literal["float32", "float16"]


@dataclass
class Vectors:
    """Vectors of users: copies, a row a user; and how many of their newest events each lacks."""

    vector_BS: NDArray[np.float32]
    unseen_B: NDArray[np.int32]

    @classmethod
    def concatenate(cls, parts: Sequence["Vectors"]) -> "Vectors":
        """The users of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        return cls(np.concatenate([p.vector_BS for p in parts]), np.concatenate([p.unseen_B for p in parts]))


class VectorCache:
    """Slots of vectors; when all are taken, those kept the longest ago go. The owner keeps each user's slot.

    Args:
        size: S.
        most: slots; None for as many as fit into `DEFAULT_BYTES`.
        precision: of a vector at rest; half of it halves the memory.
    """

    def __init__(self, size: int, most: int | None = None, precision: Precision = "float32") -> None:
        dtype = np.dtype(precision)
        self.most = max(1, DEFAULT_BYTES // max(1, size * dtype.itemsize)) if most is None else most
        self._slots = np.zeros((1, size), dtype)
        self._row = np.zeros(1, np.int32)  # of the user whose vector it is, in the owner's slabs
        self._kept_at = np.full(1, NEVER, np.int64)
        self._keeps = 0
        self._used = 1
        self._free: list[int] = []
        self._eldest = Eldest()

    @property
    def nbytes(self) -> int:
        """Bytes of the slabs."""
        return self._slots.nbytes + self._row.nbytes + self._kept_at.nbytes

    def take(self, slots_B: NDArray[np.int32]) -> NDArray[np.float32]:
        """Copies of these slots' vectors, float32 [B, S]; zeros for `NONE`."""
        return self._slots[slots_B].astype(np.float32, copy=False)

    def keep(
        self, slots_B: NDArray[np.int32], rows_B: NDArray[Any], vector_BS: NDArray[np.float32]
    ) -> tuple[NDArray[np.int32], list[int]]:
        """Keep the vectors of these users, who are different ones.

        Args:
            slots_B: the slots that they have.
            rows_B: their rows.

        Returns:
            Their slots, `NONE` where the cache is smaller than the batch; and the rows of users who lost theirs.
        """
        slots_B, lost = slots_B.copy(), []
        self._keeps += 1
        self._kept_at[slots_B] = self._keeps
        self._kept_at[NONE] = NEVER
        for b in np.flatnonzero(slots_B == NONE).tolist():
            slot = self._claim()
            if slot == NONE:
                eldest = self._eldest.pop(self._kept_at[: self._used], self._keeps)
                if eldest is None:  # all are of this batch
                    break
                slot = eldest
                lost.append(int(self._row[slot]))
            slots_B[b], self._kept_at[slot] = slot, self._keeps
        some = np.flatnonzero(slots_B)
        self._slots[slots_B[some]], self._row[slots_B[some]] = vector_BS[some], rows_B[some]
        return slots_B, lost

    def release(self, slot: int) -> None:
        """The user of this slot is gone."""
        if slot != NONE:
            self._kept_at[slot] = NEVER
            self._free.append(slot)

    def _claim(self) -> int:
        """A slot that nobody has, `NONE` if there is none."""
        if self._free:
            return self._free.pop()
        if self._used > self.most:
            return NONE
        if self._used == len(self._row):
            self._grow()
        self._used += 1
        return self._used - 1

    def _grow(self) -> None:
        slots = len(self._row)
        step = max(1, GROWTH_BYTES // max(1, self._slots[0].nbytes))
        grow((self._slots, self._row, self._kept_at), slots, FIRST_SLOTS, step, self.most + 1)
        self._kept_at[slots:] = NEVER
