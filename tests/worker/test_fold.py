"""The fold equals the plain one, whatever comes in whatever order."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from stream_worker.events import Events
from stream_worker.fold import Fold
from stream_worker.messages import Event, item_hash
from stream_worker.state import FEW_EVENTS, Actions, Partition
from tests.worker.oracle import expected, fold_log
from tests.worker.world import START_MS, exact, fold_one

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
        fold_one(state, one, item_hash(event["item"]), action, actions.excluding[action], offset, START_MS)
    return state, actions


def by_column(log: list[dict[str, Any]], actions: Actions, first: int) -> Events:
    events = Events()
    for offset, one in enumerate(log, first):
        code = actions.code(one["action"])
        events.add(one["user"], item_hash(one["item"]), one["time"] // 1000, code, offset, START_MS + offset)
    return events


@settings(max_examples=400, deadline=None)
@given(
    st.lists(events.filter(lambda event: event["action"] != "forget"), min_size=FEW_EVENTS, max_size=90),
    st.integers(1, 5),
    st.integers(0, 3),
    st.sampled_from([1, 2, 1000]),
    st.booleans(),
    st.sampled_from([0, -50, -1000]),
)
def test_many_events_at_once_are_folded_as_one_by_one(
    log: list[dict[str, Any]], history_length: int, excluded_length: int, max_users: int, in_order: bool, first: int
) -> None:
    if in_order:  # so that most are appended
        log = [{**event, "time": START_MS + 400 * place} for place, event in enumerate(log)]
    actions = Actions(EXCLUDING)
    every, single = (Partition(0, history_length, excluded_length, 5, max_users) for _ in range(2))
    events = by_column(log, actions, first)  # those of a seed have offsets below 0
    for replayed in (False, True):
        outcomes: list[int] = []
        for e in range(len(events)):
            one = Event(events.users[e], "", "", events.times[e] * 1000)
            action = events.actions[e]
            offset, stamp = events.offsets[e], events.timestamps[e]
            excluding = actions.excluding[action]
            outcomes += fold_one(single, one, events.items[e], action, excluding, offset, stamp)[1:]
        rows_E, outcomes_E = every.fold(events, actions.excluding)
        assert outcomes_E.tolist() == outcomes
        assert exact(every, actions) == exact(single, actions)
        assert every.changed == single.changed
        assert max_users < 1000 or [every.users[row] for row in rows_E] == events.users
        assert replayed is (not (outcomes_E < Fold.DUPLICATE).any()) or max_users < 3


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
        _, outcome = fold_one(state, one, item_hash(one.item), actions.code(one.action), False, offset, START_MS)
        assert outcome is Fold.REPLAYED or offset > applied  # a duplicate at the end is no applied event
    assert exact(state, actions) == before


def test_what_becomes_of_an_event() -> None:
    state = Partition(0, 2, 0, 5)

    def fold(item: str, second: int, offset: int) -> Fold:
        event = Event("u", item, "view", START_MS + second * 1000)
        return fold_one(state, event, item_hash(item), 0, False, offset, START_MS)[1]

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
        row, _ = fold_one(state, event, number, 0, False, number, START_MS)
        state.listed_items[row] = 3
    assert len(state) == 10_000
    assert len(state.length) == 12_288  # 256, 512 … 4096, and two chunks more
    assert [int(state.items[number, 0]) for number in (0, 4095, 4096, 9999)] == [0, 4095, 4096, 9999]
    freed = state.row("u77")
    state.forget("u77")
    again, outcome = fold_one(state, Event("new", "i", "view", START_MS), 1, 0, False, 5, START_MS)
    assert (again, outcome) == (freed, Fold.APPENDED)
    assert state.events[again] == 1
    assert (state.listed_items[again] == -1).all()
    state.forget("nobody")
