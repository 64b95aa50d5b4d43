"""The fold equals the plain one, whatever comes in whatever order."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from stream_worker.fold import Fold
from stream_worker.messages import Event, item_hash
from stream_worker.state import Actions, Partition
from tests.worker.oracle import expected, fold_log
from tests.worker.world import START_MS, exact

EXCLUDING = frozenset({"purchase", "hide"})

events = st.fixed_dictionaries(
    {
        "user": st.sampled_from(["u1", "u2", "u3"]),
        "item": st.sampled_from([f"i{number}" for number in range(6)]),
        "action": st.sampled_from(["view", "view", "click", "purchase", "hide", "forget"]),
        "time": st.integers(0, 12).map(lambda second: START_MS + second * 1000 + 7),
    }
)


def fold_all(log: list[dict[str, Any]], history_length: int, excluded_length: int) -> tuple[Partition, Actions]:
    state, actions = Partition(0, history_length, excluded_length, 5), Actions(EXCLUDING)
    for offset, event in enumerate(log):
        if event["action"] == "forget":
            state.forget(event["user"])
            continue
        action = actions.code(event["action"])
        one = Event(event["user"], event["item"], event["action"], event["time"])
        state.fold(one, item_hash(event["item"]), action, actions.excluding[action], offset, START_MS)
    return state, actions


@settings(max_examples=400, deadline=None)
@given(st.lists(events, max_size=60), st.integers(1, 5), st.integers(0, 3))
def test_the_state_equals_a_plain_fold_of_the_log(
    log: list[dict[str, Any]], history_length: int, excluded_length: int
) -> None:
    state, actions = fold_all(log, history_length, excluded_length)
    received = [{**event, "received": START_MS} for event in log]
    oracle = fold_log(received, history_length, excluded_length, EXCLUDING)
    assert exact(state, actions) == {name: expected(user) for name, user in oracle.items()}


@settings(max_examples=100, deadline=None)
@given(st.lists(events.filter(lambda event: event["action"] != "forget"), max_size=40))
def test_replaying_the_log_changes_nothing(log: list[dict[str, Any]]) -> None:
    state, actions = fold_all(log, 4, 2)
    before = exact(state, actions)
    for offset, event in enumerate(log):
        one = Event(event["user"], event["item"], event["action"], event["time"])
        row = state.row(one.user)
        assert row is not None
        applied = int(state.applied_offset[row])
        _, outcome = state.fold(one, item_hash(one.item), actions.code(one.action), False, offset, START_MS)
        assert outcome is Fold.REPLAYED or offset > applied  # a duplicate at the end is no applied event
    assert exact(state, actions) == before


def test_what_becomes_of_an_event() -> None:
    state = Partition(0, 2, 0, 5)

    def fold(item: str, second: int, offset: int) -> Fold:
        event = Event("u", item, "view", START_MS + second * 1000)
        return state.fold(event, item_hash(item), 0, False, offset, START_MS)[1]

    assert fold("i1", 10, 0) is Fold.APPENDED
    assert fold("i1", 10, 1) is Fold.DUPLICATE
    assert fold("i2", 5, 2) is Fold.LATE
    assert fold("i3", 4, 3) is Fold.TOO_OLD
    assert fold("i3", 4, 3) is Fold.REPLAYED
    assert state.events[0] == 3
    assert state.applied_offset[0] == 3


def test_slabs_grow_by_chunks_and_rows_are_reused_clean() -> None:
    state = Partition(0, 4, 2, 5)
    for number in range(10_000):
        event = Event(f"u{number}", "i", "view", START_MS)
        row, _ = state.fold(event, number, 0, False, number, START_MS)
        state.listed_items[row] = 3
    assert len(state) == 10_000
    assert len(state.length) == 12_288  # 256, 512 … 4096, and two chunks more
    assert [int(state.items[number, 0]) for number in (0, 4095, 4096, 9999)] == [0, 4095, 4096, 9999]
    freed = state.row("u77")
    state.forget("u77")
    again, outcome = state.fold(Event("new", "i", "view", START_MS), 1, 0, False, 5, START_MS)
    assert (again, outcome) == (freed, Fold.APPENDED)
    assert state.events[again] == 1
    assert (state.listed_items[again] == -1).all()
    state.forget("nobody")
