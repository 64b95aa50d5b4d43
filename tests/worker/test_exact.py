"""Whatever happens in whatever order, the states are what a plain fold of the log gives, and every list is current."""

import os
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from stream_worker.bundle import Bundle
from stream_worker.errors import FencedError
from stream_worker.pipeline import Pipeline
from stream_worker.transports.base import Cause
from stream_worker.transports.memory import Crash, MemoryTransport
from tests.worker.crashes import STEPS
from tests.worker.traffic import ACTIONS, REJECTS, Traffic
from tests.worker.world import World

EXAMPLES = 3000 if os.environ.get("CHAOS") == "long" else 200
PARTITIONS, MOST_WORKERS = 3, 3
FAULTS = ("lose_answers", "delay_checkpoints", "hold_published", "away", "stalled")
CALLS = ("poll", "seek", "publish", *STEPS)

users = st.integers(0, 6)
items = st.integers(0, 5)
seconds = st.integers(0, 12)
workers = st.integers(0, MOST_WORKERS - 1)
few = st.integers(1, 6)


@dataclass
class Member:
    """A worker of the group."""

    transport: MemoryTransport
    pipeline: Pipeline


class Machine(RuleBasedStateMachine):
    """The log, its writers, one to three workers, and what can happen to them."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self._bundle = bundle
        self._members: list[Member] = []

    @initialize(polled=st.sampled_from([1, 2, 5, 50]), dirty=st.sampled_from([1, 3, 10_000]))
    def begin(self, polled: int, dirty: int) -> None:
        self._world = World(
            self._bundle,
            partitions=PARTITIONS,
            history_length=3,
            excluded_length=2,
            max_reject_share=1,
            max_poll_records=polled,
            max_dirty_users=dirty,
        )
        self._members = [Member(self._world.transport, self._world.pipeline)]
        self._traffic = Traffic(self._world)

    # -- the log grows -----------------------------------------------------------------------------------------------

    @rule(user=users, item=items, action=st.sampled_from(ACTIONS), second=seconds)
    def event(self, user: int, item: int, action: str, second: int) -> None:
        self._traffic.event(user, item, action, second)

    @rule(user=users, several=st.lists(st.tuples(items, seconds), min_size=2, max_size=6))
    def events(self, user: int, several: list[tuple[int, int]]) -> None:
        for item, second in several:
            self._traffic.event(user, item, "view", second)

    @rule(user=users, back=st.integers(0, 8))
    def repeat(self, user: int, back: int) -> None:
        self._traffic.repeat(user, back)

    @rule(user=users, value=st.sampled_from(REJECTS))
    def reject(self, user: int, value: bytes | None) -> None:
        self._traffic.reject(user, value)

    @rule(user=users)
    def forget(self, user: int) -> None:
        self._traffic.forget(user)

    # -- the workers work, or fail -----------------------------------------------------------------------------------

    @rule(place=workers, count=few)
    def step(self, place: int, count: int) -> None:
        member = self._member(place)
        try:
            for _ in range(count):
                member.pipeline.step(0)
        except (Crash, FencedError):
            self._replace(member)

    @rule(place=workers, cause=st.sampled_from(Cause))
    def fail_checkpoints(self, place: int, cause: Cause) -> None:
        self._member(place).transport.fail_checkpoints = cause

    @rule(place=workers, fault=st.sampled_from(FAULTS))
    def begin_fault(self, place: int, fault: str) -> None:
        setattr(self._member(place).transport, fault, True)

    @rule(place=workers)
    def heal(self, place: int) -> None:
        self._heal(self._member(place).transport)

    @rule()
    def settle(self) -> None:
        """A good time: all is healed, and all that is left is served."""
        for member in self._members:
            self._heal(member.transport)
        pipelines = [member.pipeline for member in self._members]
        self._world.finish(*pipelines)
        self._traffic.check(*pipelines)

    @rule(place=workers, failures=st.integers(0, 3))
    def release(self, place: int, failures: int) -> None:
        transport = self._member(place).transport
        transport.fail_next = failures
        transport.release()

    @rule(place=workers, call=st.sampled_from(CALLS), count=few)
    def arm(self, place: int, call: str, count: int) -> None:
        self._member(place).transport.crash_at(call, count)

    @rule(place=workers, settle=st.booleans())
    def crash(self, place: int, settle: bool) -> None:
        self._replace(self._member(place))
        if settle:  # before what comes next hides what was lost
            self.settle()

    # -- partitions move ---------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self._members) < MOST_WORKERS)
    @rule()
    def join(self) -> None:
        transport, pipeline, _ = self._world.worker()
        self._members.append(Member(transport, pipeline))

    @precondition(lambda self: len(self._members) > 1)
    @rule(place=workers, orderly=st.booleans())
    def leave(self, place: int, orderly: bool) -> None:
        member = self._member(place)
        self._members.remove(member)
        try:
            if orderly:
                self._heal(member.transport)
                member.pipeline.drain(5)
        except (Crash, FencedError):
            pass
        member.transport.close()

    @rule(owners=st.lists(workers, min_size=PARTITIONS, max_size=PARTITIONS))
    def assign(self, owners: list[int]) -> None:
        """Any partition goes to any worker."""
        self._world.log.generation += 1
        for member in self._members:
            ours = {number for number, place in enumerate(owners) if self._member(place) is member}
            member.transport.reassign(ours)

    @rule()
    def compact(self) -> None:
        self._world.log.compact()

    # -- the end -----------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Heal everything, serve all that is left, and compare; then once more from the changelog alone."""
        if not self._members:
            return
        self.settle()
        self._traffic.check_lists()
        self._traffic.check_durable()

    def _member(self, place: int) -> Member:
        return self._members[place % len(self._members)]

    def _replace(self, member: Member) -> None:
        """It is gone without a word, and another process comes."""
        self._world.expel(member.transport)
        transport, pipeline, _ = self._world.worker()
        self._members[self._members.index(member)] = Member(transport, pipeline)

    def _heal(self, transport: MemoryTransport) -> None:
        transport.fail_checkpoints = None
        for fault in FAULTS:
            setattr(transport, fault, False)
        transport.fail_next = 0
        transport.crash_at("", 0)
        transport.release()


def test_states_and_lists_are_exact_whatever_happens(popularity: Bundle) -> None:
    machine: Any = lambda: Machine(popularity)  # noqa: E731 - Hypothesis calls it as it would the class
    limits = settings(
        max_examples=EXAMPLES, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(machine, settings=limits)
