"""What may be committed: the position of a partition never passes an event whose list is not acknowledged.

State lives in memory; a worker that is given a partition makes it again by folding the log from its start.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stream_worker.state import Partition


@dataclass
class Owned:
    """A partition that is ours: its users, and how far we are."""

    state: Partition
    restore_until: int  # the group's position when it was assigned: events before it have had their lists
    next_offset: int  # after all records folded, skipped or rejected
    committed: int  # what the log has accepted, -1 for nothing
    assigned_at: float  # monotonic
    timestamp: int = 0  # Kafka timestamp of the last record, epoch ms
    restoring: bool = True  # until all events before `restore_until` are folded
    catching_up: bool = False  # its records are old, and many are waiting


def committable(owned: Mapping[int, Owned], unanswered: Iterable[tuple[int, int]]) -> dict[int, int]:
    """The positions that may be committed.

    Args:
        owned: partitions by number.
        unanswered: (partition, offset) of events whose list or rejection is not acknowledged.

    Returns:
        The next offset to read, of each partition that has got further than what is committed.
    """
    positions = {number: one.next_offset for number, one in owned.items() if not one.restoring}
    for number, offset in unanswered:
        if number in positions:
            positions[number] = min(positions[number], offset)
    return {number: offset for number, offset in positions.items() if offset > owned[number].committed}
