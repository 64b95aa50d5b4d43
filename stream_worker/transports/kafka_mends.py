"""What kafka-python 3.0.12 gets wrong in a consumer, and the mends. All of it is inside the client."""

import math
import time
from collections.abc import Callable
from typing import Any

from kafka import KafkaConsumer
from kafka.coordinator.consumer import ConsumerCoordinator
from kafka.structs import MemberState


class ConsumerMends:
    """To be asked by the main thread, around the polls of one consumer."""

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._coordinator = consumer._coordinator  # noqa: SLF001 - there is no public way to anything here
        self._coordinator.__class__ = _Coordinator
        self._fetcher = consumer._fetcher  # noqa: SLF001
        self._polled_at = math.inf  # monotonic

    @property
    def heartbeat_overdue(self) -> bool:
        """Whether a heartbeat is unanswered when the next one is due.

        poll() then does not wait; it goes round and round until its time is over, and each round adds to what the
        fetch under way will call at its end. A broker that was silent for 20 s cost 200 MB.
        """
        heartbeat = self._coordinator.heartbeat
        unanswered = heartbeat.last_receive < heartbeat.last_send
        return bool(unanswered and self._coordinator.stable() and self._coordinator.time_to_next_heartbeat() == 0)

    @property
    def fenced(self) -> bool:
        """Whether another process has our instance id: a heartbeat that learns so ends heartbeats in silence."""
        with self._coordinator._lock:  # noqa: SLF001 - a join changes all three under it
            member = self._coordinator.stable() and not self._coordinator.rejoin_needed
            return bool(member and not self._coordinator._heartbeat_enabled)  # noqa: SLF001

    def before_poll(self) -> None:
        """What is to be mended before each poll."""
        self._ask_after_a_stall()
        self._await_join()
        self._unpark()

    def _ask_after_a_stall(self) -> None:
        """See that the group is asked at once whether we are still in it, if we were stopped for a while.

        Nothing is published before it has answered, and the next heartbeat may be a quarter of a session away.
        """
        now = time.monotonic()
        gap_s, self._polled_at = now - self._polled_at, now
        heartbeat = self._coordinator.heartbeat
        if gap_s * 1000 > heartbeat.config["heartbeat_interval_ms"]:
            heartbeat.fail_heartbeat()  # to the client: the next one is due
            self._coordinator._heartbeat_wakeup.notify()  # noqa: SLF001

    def _unpark(self) -> None:
        """See that records of a partition that was paused are delivered once it is resumed.

        Those that were next in line are parked, and taken back when the line is None; after other partitions' records
        it is empty instead, for ever. And what is parked is not fetched again: the partition stands still.
        """
        if not self._fetcher._next_partition_records:  # noqa: SLF001
            self._fetcher._next_partition_records = None  # noqa: SLF001

    def _await_join(self) -> None:
        """See that a join under way is awaited.

        If the join was because of new metadata and its first poll gave up half-way, it is not awaited any more, because
        the metadata are no longer new. The member then stays "rebalancing": its commits are refused, its heartbeats
        have stopped. While a join is under way the flag is set anyway; once it is complete, it would cause another.
        """
        with self._coordinator._lock:  # noqa: SLF001 - a join is completed under it
            if self._coordinator.state is MemberState.REBALANCING:
                self._coordinator.request_rejoin()


class _Coordinator(ConsumerCoordinator):  # type: ignore[misc]
    """One that overlooks no join.

    A poll that is shorter than a join leaves it to the next one. If the join ends between the two, the client throws
    its result away and joins again: one rebalance more for everybody, even if a static member restarts.
    """

    @property
    def _join_task(self) -> "_Join | None":
        return self.__dict__["_join_task"]  # type: ignore[no-any-return]

    @_join_task.setter
    def _join_task(self, task: Any) -> None:
        self.__dict__["_join_task"] = None if task is None else _Join(task)


class _Join:
    """A join that is not over before somebody has waited for it."""

    is_done = False

    def __init__(self, task: Any) -> None:
        self.add_callback: Callable[..., object] = task.add_callback
        self.add_errback: Callable[..., object] = task.add_errback
