"""How the arrays of a partition grow, a row a user and all slabs alike, and which row goes when they may not.

Axes: C capacity in rows.
"""

from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK_ROWS = 4096  # slabs double up to this, and then grow by it
AT_ONCE = 256  # rows that are found to go next, or a 64th of all


def grow(
    slabs: Iterable[NDArray[Any]], capacity: int, first_rows: int, chunk_rows: int = CHUNK_ROWS, most: int = 2**62
) -> int:
    """Give these slabs of `capacity` rows more rows, of zeros. Returns how many they have now, `most` at the most.

    In place by realloc, which moves pages, not bytes, once a slab is large; no view may outlive it.
    """
    capacity = min(capacity + min(max(capacity, first_rows), chunk_rows), most)
    for slab in slabs:
        slab.resize((capacity, *slab.shape[1:]), refcheck=False)
    return capacity


class Eldest:
    """Rows in the order of their stamps, smallest first, found several at a time.

    A row whose stamp has changed since it was found is passed over: it is then newer than all that were found.
    """

    def __init__(self) -> None:
        self._next: deque[tuple[int, int]] = deque()  # (row, stamp)

    def pop(self, stamps_C: NDArray[np.int64], below: int) -> int | None:
        """The row with the smallest stamp, if that is smaller than `below`."""
        while True:
            if not self._next:
                several = min(max(AT_ONCE, len(stamps_C) // 64), len(stamps_C))
                rows = np.argpartition(stamps_C, several - 1)[:several]
                rows = rows[np.argsort(stamps_C[rows])]
                if stamps_C[rows[0]] >= below:
                    return None
                self._next = deque(zip(rows.tolist(), stamps_C[rows].tolist(), strict=True))
            row, stamp = self._next.popleft()
            if stamps_C[row] == stamp < below:
                return row
