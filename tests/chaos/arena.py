"""A stage on which things break: traffic, faults, the orderly end, and the verdict."""

import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from kafka import KafkaAdminClient, TopicPartition

from demo.broker import Broker
from tests.chaos.traffic import Traffic
from tests.chaos.verdict import ROWS, Verdict, differences, end_offsets, judge
from tests.worker.process import Stage, WorkerProcess, wait_for

LONG = os.environ.get("CHAOS") == "long"
SETTLE_S = 120  # the machine may be busy with other things


def sized(short: int, long: int) -> int:
    """As many in `make test`, so many in `make chaos`."""
    return long if LONG else short


class Arena(Stage):
    """See `Stage`; `rng` draws the faults, from the run's seed and the scenario's name."""

    def __init__(
        self,
        broker: Broker,
        bundle: Path,
        logs: Path,
        unique: Callable[[str], str],
        seed: int,
        client: str,
    ) -> None:
        super().__init__(broker, bundle, logs, unique, client)
        self.seed = seed
        self.rng = random.Random(f"{seed} {logs.name}")

    def traffic(self, users: int, rate: int) -> Traffic:
        """Events for so many users, so many a second."""
        return Traffic(self.broker.bootstrap, self.names["events_topic"], self.rng.randrange(2**32), users, rate)

    def two_workers(self, *flags: str) -> list[WorkerProcess]:
        """Started together, each with half of the partitions."""
        workers = [self.worker(*flags, ready=False) for _ in range(2)]
        half = self.partitions // 2
        wait_for(
            "half of the partitions each",
            lambda: all(worker.ready() and worker.partitions() == half for worker in workers),
            SETTLE_S,
        )
        return workers

    @property
    def alive(self) -> list[WorkerProcess]:
        """Those that have not ended."""
        return [worker for worker in self.workers if worker.process.poll() is None]

    def committed(self) -> Mapping[int, int]:
        """The group's position in each partition: what a confirmed checkpoint holds."""
        admin = KafkaAdminClient(bootstrap_servers=self.broker.bootstrap)
        try:
            offsets = admin.list_group_offsets({self.group: None})[self.group]
            return {partition.partition: one.offset for partition, one in offsets.items()}
        finally:
            admin.close()

    def ends(self) -> Mapping[int, int]:
        """The next offset of each events partition."""
        partitions = [TopicPartition(self.names["events_topic"], number) for number in range(self.partitions)]
        return {partition.partition: end for partition, end in end_offsets(self, partitions).items()}

    def caught_up(self, deadline_s: float = SETTLE_S) -> None:
        """Until every event is in a confirmed checkpoint. Nothing may be producing."""
        ends = {number: end for number, end in self.ends().items() if end}
        wait_for("all events in a checkpoint", lambda: self.committed().items() >= ends.items(), deadline_s)

    def expect_lists(self) -> None:
        """Every user's newest record is the list of the user's last event. Nothing may be producing."""
        self.caught_up()
        deadline = time.monotonic() + 10  # the last ones may be on their way; what is stale stays so
        while not (verdict := judge(self, states=False)).clean:
            assert time.monotonic() < deadline, differences(verdict)

    def stop_workers(self) -> None:
        """SIGTERM to all at once; each ends with 0."""
        for worker in self.alive:
            worker.process.send_signal(signal.SIGTERM)
        for worker in self.workers:
            code = worker.process.wait(SETTLE_S)
            assert code in (0, -signal.SIGKILL), f"{worker.log.name} ended with {code}"

    def finish(self, scenario: str, faults: str, remarks: str = "") -> Verdict:
        """The traffic has ended: catch up, stop, compare; the row of the table."""
        self.caught_up()
        self.stop_workers()
        verdict = judge(self)
        ROWS.append((scenario, self.client, faults, verdict, remarks))
        assert verdict.clean, differences(verdict)
        return verdict
