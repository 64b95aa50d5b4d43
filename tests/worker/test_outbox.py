"""What is published bears the time at which we knew that it was ours to publish."""

import time

from stream_worker.metrics import Metrics
from stream_worker.outbox import FREE_RETRIES, MOST_REJECTS_BYTES, Outbox, Sent
from stream_worker.ownership import Lease
from stream_worker.state import Partition
from stream_worker.transports.base import Topic
from stream_worker.transports.memory import MemoryLog, MemoryTransport


class StoppedAfterTheLook(Lease):
    """Valid; and then the process is stopped for a moment, before it can act on that."""

    looked_at = 0.0

    @property
    def valid(self) -> bool:
        self.looked_at = time.time()
        time.sleep(0.05)
        return True


def test_a_list_is_as_old_as_the_last_look_at_the_lease() -> None:
    """So that the log can refuse it when the stop was long."""
    log = MemoryLog(1)
    transport = MemoryTransport(log)
    lease = StoppedAfterTheLook(transport, 6)
    outbox = Outbox(transport, Metrics(), "model", "a", 10, lease)
    outbox.send([Sent(Partition(0, 1, 1, 1), Topic.RECOMMENDATIONS, 0, b"u1", None, "u1")])
    (record,) = log.topics[Topic.RECOMMENDATIONS]
    assert record.timestamp <= lease.looked_at * 1000


class Valid(Lease):
    """As if the group answered all the time."""

    @property
    def valid(self) -> bool:
        return True


def test_rejects_that_their_topic_refuses_are_tried_ever_less_often_and_are_bounded() -> None:
    """Each failure costs a producer, for which all lists wait."""
    log = MemoryLog(1)
    transport = MemoryTransport(log)
    outbox = Outbox(transport, Metrics(), "model", "a", 1000, Valid(transport, 6))
    state = Partition(0, 1, 1, 1)
    transport.fail_next = 10**6
    large = bytes(MOST_REJECTS_BYTES // 8)
    outbox.send([Sent(state, Topic.REJECTED, offset, b"u1", large) for offset in range(7)])
    outbox.settle()
    assert not outbox.crowded
    outbox.send([Sent(state, Topic.REJECTED, 7, b"u1", large)])
    outbox.settle()
    assert outbox.crowded, "no more events may be read"
    assert sorted(offset for _, offset in outbox.held_back) == list(range(8))

    for _ in range(FREE_RETRIES):
        outbox.send_waiting()
        outbox.settle()
    gaps = []
    for _ in range(3):
        refused, began = transport.fail_next, time.monotonic()
        while transport.fail_next == refused:
            outbox.send_waiting()
        outbox.settle()
        gaps.append(time.monotonic() - began)
    assert gaps[0] < gaps[1] < gaps[2], gaps

    transport.fail_next = 0
    while outbox.crowded:
        outbox.send_waiting()
    outbox.settle()
    assert [record.value for record in log.topics[Topic.REJECTED]] == [large] * 8
    assert len(outbox) == 0
