"""What is published bears the time at which we knew that it was ours to publish."""

import time

from stream_worker.metrics import Metrics
from stream_worker.outbox import Outbox, Sent
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
