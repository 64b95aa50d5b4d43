"""One event into one user's history: pure and deterministic, no clock, no I/O.

A history is three rows of a slab, oldest event first: `items_H` (xxh3 hashes), `times_H` (whole seconds),
`actions_H` (interned codes), of which the first `length` are filled. Order: event time, ties by arrival.
The trainer folds with the same functions, so that offline and online agree.
Axes: H history kept, C rows of a slab, E events, U users.
"""

from enum import IntEnum
from typing import Any

import numpy as np
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


def append(
    items_CH: NDArray[Any],
    times_CH: NDArray[Any],
    actions_CH: NDArray[Any],
    length_C: NDArray[Any],
    rows_E: NDArray[np.intp],
    items_E: NDArray[Any],
    times_E: NDArray[Any],
    actions_E: NDArray[Any],
) -> NDArray[np.bool_]:
    """Insert the events of all users whose events follow one upon the other, each in a later second, as most do.

    That is what `insert` would do one by one, at a fifth of its cost.

    Args:
        items_CH, times_CH, actions_CH, length_C: slabs with a history a row, changed in place.
        rows_E: int [E], the user of each event; the events in the order of the log.
        items_E, times_E, actions_E: the events.

    Returns:
        bool [E]: whether the event was appended. Of a user either all are or none.
    """
    H = items_CH.shape[1]
    order = np.argsort(rows_E, kind="stable")
    rows, times = rows_E[order], times_E[order]
    start_U = np.flatnonzero(np.diff(rows, prepend=-1))
    count_U = np.diff(start_U, append=len(rows))
    rows_U = rows[start_U]
    length_U = length_C[rows_U]

    before = np.roll(times, 1)
    before[start_U] = times_CH[rows_U, np.maximum(length_U - 1, 0)]
    later = times > before
    later[start_U] |= length_U == 0
    later_U = np.logical_and.reduceat(later, start_U)

    shift_U = np.where(later_U, np.maximum(length_U + count_U - H, 0), 0)
    shifted_S = np.flatnonzero(shift_U)
    rows_S = rows_U[shifted_S]
    source_SH = np.minimum(np.arange(H) + shift_U[shifted_S, None], H - 1)
    place = np.repeat(length_U - shift_U - start_U, count_U) + np.arange(len(rows))
    put = np.repeat(later_U, count_U) & (place >= 0)
    for slab_CH, values_E in ((items_CH, items_E), (times_CH, times_E), (actions_CH, actions_E)):
        slab_CH[rows_S] = np.take_along_axis(slab_CH[rows_S], source_SH, 1)
        slab_CH[rows[put], place[put]] = values_E[order[put]]
    length_C[rows_U[later_U]] = np.minimum(length_U + count_U, H)[later_U]

    appended_E = np.empty(len(rows_E), np.bool_)
    appended_E[order] = np.repeat(later_U, count_U)
    return appended_E


def exclude(items_E: NDArray[Any], actions_E: NDArray[Any], length: int, item: int, action: int) -> int:
    """Note an item of an excluding action in place: each item once an action, the last noted at the end.

    Once an action, because a model may exclude for fewer of them than are kept: what was bought and then hidden was
    bought all the same.

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
        if items_E[place] == item and actions_E[place] == action:
            break
    else:
        place = 0 if length == len(items_E) else length  # the oldest makes room
        length = min(length + 1, len(items_E))
    for row_E in (items_E, actions_E):
        row_E[place : length - 1] = row_E[place + 1 : length]
    items_E[length - 1] = item
    actions_E[length - 1] = action
    return length
