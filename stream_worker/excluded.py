"""The items of excluding actions: a row for each user who has some, as most have none.

Axes: E items kept of a user, B users, C capacity in rows.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_worker.fold import exclude
from stream_worker.slabs import grow

FIRST_ROWS = 64  # of the slabs
NONE = 0  # the row of everybody without such items; it stays empty


class Excluded:
    """Slabs of the newest E items of excluding actions, by row. The owner keeps each user's row, `NONE` to begin with.

    Args:
        length: E.
    """

    def __init__(self, length: int) -> None:
        self.items = np.zeros((1, length), np.uint64)
        self.actions = np.zeros((1, length), np.uint16)
        self.length = np.zeros(1, np.int32)
        self._used = 1
        self._free: list[int] = []

    @property
    def nbytes(self) -> int:
        """Bytes of the slabs."""
        return self.items.nbytes + self.actions.nbytes + self.length.nbytes

    def note(self, row: int, item: int, action: int) -> int:
        """Note an item for the user of this row. Returns the row, a new one if it was `NONE`."""
        if not self.items.shape[1]:
            return NONE
        if row == NONE:
            row = self._claim()
        self.length[row] = exclude(self.items[row], self.actions[row], int(self.length[row]), item, action)
        return row

    def release(self, row: int) -> None:
        """The user of this row has no such items any more."""
        if row != NONE:
            self._free.append(row)

    def replace(
        self, rows_B: NDArray[np.int32], items_BE: NDArray[Any], actions_BE: NDArray[Any], length_B: NDArray[Any]
    ) -> NDArray[np.int32]:
        """Put other items in place of those of these rows. Returns the rows, `NONE` for users who have no items now."""
        rows_B = rows_B.copy()
        for b in np.flatnonzero((rows_B == NONE) & (length_B > 0)).tolist():
            rows_B[b] = self._claim()
        for b in np.flatnonzero((rows_B != NONE) & (length_B == 0)).tolist():
            self.release(int(rows_B[b]))
            rows_B[b] = NONE
        some = np.flatnonzero(rows_B)
        rows = rows_B[some]
        self.items[rows], self.actions[rows], self.length[rows] = items_BE[some], actions_BE[some], length_B[some]
        return rows_B

    def _claim(self) -> int:
        """A row for a new user, empty."""
        if self._free:
            row = self._free.pop()
            self.length[row] = 0
            return row
        row = self._used
        self._used += 1
        if row == len(self.length):
            grow((self.items, self.actions, self.length), row, FIRST_ROWS)
        return row
