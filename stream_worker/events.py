"""Events of one partition on their way into its state, by column."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Columns(NamedTuple):
    """Arrays of E events: item hashes, whole seconds, action codes, offsets, Kafka timestamps (epoch ms)."""

    items_E: NDArray[np.uint64]
    times_E: NDArray[np.uint32]
    actions_E: NDArray[np.uint16]
    offsets_E: NDArray[np.int64]
    timestamps_E: NDArray[np.int64]


@dataclass(slots=True)
class Events:
    """Well-formed events in the order of the log."""

    users: list[str] = field(default_factory=list)
    items: list[int] = field(default_factory=list)  # hashes
    times: list[int] = field(default_factory=list)  # whole seconds
    actions: list[int] = field(default_factory=list)  # codes
    offsets: list[int] = field(default_factory=list)
    timestamps: list[int] = field(default_factory=list)  # of their records, epoch ms

    def __len__(self) -> int:
        """E."""
        return len(self.users)

    def add(self, user: str, item: int, time: int, action: int, offset: int, timestamp: int) -> None:
        """One more event."""
        self.users.append(user)
        self.items.append(item)
        self.times.append(time)
        self.actions.append(action)
        self.offsets.append(offset)
        self.timestamps.append(timestamp)

    def columns(self) -> Columns:
        """All but the users as arrays."""
        return Columns(
            np.array(self.items, np.uint64),
            np.array(self.times, np.uint32),
            np.array(self.actions, np.uint16),
            np.array(self.offsets, np.int64),
            np.array(self.timestamps, np.int64),
        )
