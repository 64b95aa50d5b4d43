"""How the arrays of a partition grow: a row a user, all slabs alike. Axes: C capacity in rows."""

from collections.abc import Iterable
from typing import Any

from numpy.typing import NDArray

CHUNK_ROWS = 4096  # slabs double up to this, and then grow by it


def grow(slabs: Iterable[NDArray[Any]], capacity: int, first_rows: int) -> int:
    """Give these slabs of `capacity` rows more rows, of zeros. Returns how many they have now.

    In place by realloc, which moves pages, not bytes, once a slab is large; no view may outlive it.
    """
    capacity += min(max(capacity, first_rows), CHUNK_ROWS)
    for slab in slabs:
        slab.resize((capacity, *slab.shape[1:]), refcheck=False)
    return capacity
