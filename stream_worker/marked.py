"""Users with events that no list covers, and in which order they are served."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

FEW_LATE = 16  # enough for a batch, few enough to cost little

Key = tuple[int, str]  # partition, user


@dataclass(slots=True)
class Mark:
    """A user whose list does not cover all folded events."""

    oldest_timestamp: int  # Kafka timestamp of the oldest such event, epoch ms
    catching_up: bool  # whether its partition was behind when it came


class Marked:
    """Two queues: *fresh*, and *late* for the users of partitions that are catching up. Each is served oldest first."""

    def __init__(self) -> None:
        self._fresh: dict[Key, Mark] = {}  # insertion order: whose first event came first
        self._late: dict[Key, Mark] = {}

    def __len__(self) -> int:
        """Users."""
        return len(self._fresh) + len(self._late)

    def __contains__(self, key: Key) -> bool:
        """Whether this user waits."""
        return key in self._fresh or key in self._late

    def __iter__(self) -> Iterator[Key]:
        """All keys, in no order."""
        yield from self._fresh
        yield from self._late

    def mark(self, partition: int, users: Sequence[str], timestamps: Sequence[int], catching_up: bool) -> int:
        """Note events of these users, who may repeat, in the order of the log.

        A click in a partition that has caught up does not wait behind old work, even if its user did.

        Args:
            partition: theirs.
            users: an event each.
            timestamps: Kafka timestamps of the events, epoch ms.
            catching_up: whether the partition is behind.

        Returns:
            How many came while their user waited already, so that one list will answer both.
        """
        fresh, late = self._fresh, self._late
        queue, coalesced = late if catching_up else fresh, 0
        for user, timestamp in zip(users, timestamps, strict=True):
            key = partition, user
            if key in fresh:
                coalesced += 1
            elif key not in late:
                queue[key] = Mark(timestamp, catching_up)
            else:
                coalesced += 1
                if not catching_up:
                    fresh[key] = late.pop(key)
        return coalesced

    def put_back(self, key: Key, mark: Mark) -> None:
        """This user's list did not arrive."""
        waiting = self._fresh.get(key) or self._late.get(key)
        if waiting is None:
            (self._late if mark.catching_up else self._fresh)[key] = mark
        else:
            waiting.oldest_timestamp = min(waiting.oldest_timestamp, mark.oldest_timestamp)

    def take(self, most: int, sparing: bool) -> list[tuple[Key, Mark]]:
        """Take up to `most` users off: at least a fifth of them late ones, if so many wait, and the rest fresh ones.

        Args:
            most: there is no room for more.
            sparing: more work is coming for late users, so take no more of them than that fifth, or a few if no fresh
                ones wait; else they get all the room that fresh ones leave.
        """
        fifth = -(-most // 5)
        if sparing:
            wanted = min(fifth, max(FEW_LATE, -(-len(self._fresh) // 4)))
        else:
            wanted = max(fifth, most - len(self._fresh))
        late = min(len(self._late), wanted)
        return _pop(self._fresh, most - late) + _pop(self._late, late)

    def discard(self, key: Key) -> None:
        """This user is not waiting any more."""
        self._fresh.pop(key, None)
        self._late.pop(key, None)

    def drop(self, partition: int) -> None:
        """Nor is any of this partition."""
        self._fresh = {key: mark for key, mark in self._fresh.items() if key[0] != partition}
        self._late = {key: mark for key, mark in self._late.items() if key[0] != partition}


def _pop(queue: dict[Key, Mark], most: int) -> list[tuple[Key, Mark]]:
    keys = list(islice(queue, most))
    return list(zip(keys, map(queue.pop, keys), strict=True))
