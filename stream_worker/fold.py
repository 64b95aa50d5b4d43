"""One event into one user's history: pure and deterministic, no clock, no I/O.

A history is three rows of a slab, oldest event first: `items_H` (xxh3 hashes), `times_H` (whole seconds),
`actions_H` (interned codes), of which the first `length` are filled. Order: event time, ties by arrival.
The trainer folds with the same functions, so that offline and online agree.
"""

from enum import IntEnum
from typing import Any

from numpy.typing import NDArray


class Fold(IntEnum):
    """What became of an event."""

    APPENDED = 0  # the newest of the user
    LATE = 1  # inserted before newer ones
    TOO_OLD = 2  # older than the oldest kept of a full history: counted, not inserted
    DUPLICATE = 3  # the same item, action and second as one in the history: nothing changes
    REPLAYED = 4  # at or below the user's applied offset: nothing changes


def insert(
    items_H: NDArray[Any],
    times_H: NDArray[Any],
    actions_H: NDArray[Any],
    length: int,
    item: int,
    time: int,
    action: int,
) -> tuple[int, Fold]:
    """Insert an event into a history in place.

    Args:
        items_H: uint64 [H], changed in place, as the next two.
        times_H: uint32 [H], seconds since the epoch.
        actions_H: uint16 [H], codes.
        length: filled places.
        item, time, action: the event.

    Returns:
        The new length, and APPENDED, LATE, TOO_OLD or DUPLICATE.
    """
    place = length  # behind all that are not newer
    while place and times_H[place - 1] > time:
        place -= 1
    tie = place
    while tie and times_H[tie - 1] == time:
        tie -= 1
        if items_H[tie] == item and actions_H[tie] == action:
            return length, Fold.DUPLICATE

    outcome = Fold.APPENDED if place == length else Fold.LATE
    if length < len(items_H):
        if outcome is Fold.LATE:
            for row_H in (items_H, times_H, actions_H):
                row_H[place + 1 : length + 1] = row_H[place:length]
        length += 1
    elif place == 0:
        return length, Fold.TOO_OLD
    else:
        place -= 1  # the oldest makes room
        for row_H in (items_H, times_H, actions_H):
            row_H[:place] = row_H[1 : place + 1]
    items_H[place] = item
    times_H[place] = time
    actions_H[place] = action
    return length, outcome


def exclude(items_E: NDArray[Any], actions_E: NDArray[Any], length: int, item: int, action: int) -> int:
    """Note an item of an excluding action in place: each item once, the last noted at the end.

    Args:
        items_E: uint64 [E]; actions_E: uint16 [E]; both changed in place.
        length: filled places.
        item, action: the event.

    Returns:
        The new length.
    """
    if not len(items_E):
        return 0
    for place in range(length):
        if items_E[place] == item:
            break
    else:
        place = 0 if length == len(items_E) else length  # the oldest makes room
        length = min(length + 1, len(items_E))
    for row_E in (items_E, actions_E):
        row_E[place : length - 1] = row_E[place + 1 : length]
    items_E[length - 1] = item
    actions_E[length - 1] = action
    return length
