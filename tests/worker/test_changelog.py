"""States to records of the changelog and back: the same state, whatever it is; and what is no state is refused."""

import struct
from dataclasses import fields
from typing import NamedTuple

import numpy as np
import pytest

from stream_worker.changelog import POSITION_KEY, Loader, Position, changes, encode_position
from stream_worker.errors import DataError
from stream_worker.messages import Event
from stream_worker.state import Actions, Copy, Partition
from tests.worker.world import fold_one

H, E = 5, 3
EXCLUDING = frozenset({"purchase"})


class Stored(NamedTuple):
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


def partition() -> Partition:
    return Partition(0, H, E, 2)


def folded(state: Partition, actions: Actions, events: int, seed: int) -> None:
    """Random events of few users and items, some late, some of actions that only few have."""
    rng = np.random.default_rng(seed)
    for offset in range(events):
        name = str(rng.choice(["view", "click", "purchase", f"rare {offset % 50} é"]))
        event = Event(f"u{rng.integers(40)}", "", name, int(rng.integers(1, 10_000)) * 1000)
        code = actions.code(name)
        item = int(rng.integers(2**64, dtype=np.uint64))
        fold_one(state, event, item, code, actions.excluding[code], offset, 1_700_000_000_000 + offset)
        state.listed([event.user], [offset - int(rng.integers(2))])


def stored(state: Partition, actions: Actions) -> list[Stored]:
    return [
        Stored(offset, 0, one.key, one.value) for offset, one in enumerate(changes(0, state.take_changed(), actions))
    ]


def plain(state: Partition, actions: Actions) -> dict[str, tuple[object, ...]]:
    """Everything exact about every user, codes as names."""
    users = [user for user in state.users if user is not None]
    found: dict[str, tuple[object, ...]] = {}
    for user in users:
        row = state.row(user)
        assert row is not None
        copied = state.gather([row])
        n, m = int(state.length[row]), int(copied.excluded_length_B[0])
        found[user] = (
            state.items[row, :n].tolist(), state.times[row, :n].tolist(),
            [actions.names[code] for code in state.actions[row, :n]],
            copied.excluded_items_BE[0, :m].tolist(),
            [actions.names[code] for code in copied.excluded_actions_BE[0, :m]],
            int(state.events[row]), int(state.applied_offset[row]), int(state.listed_offset[row]),
            int(state.timestamp[row]),
        )  # fmt: skip
    return found


@pytest.mark.parametrize("seed", range(5))
def test_what_was_written_is_read_as_it_was(seed: int) -> None:
    state, actions = partition(), Actions(EXCLUDING)
    folded(state, actions, 300, seed)
    restored, others = partition(), Actions(EXCLUDING)
    others.code("another worker saw this first")
    Loader(restored, others, "state-0").load(stored(state, actions))
    assert plain(restored, others) == plain(state, actions)
    assert not restored.changed


def test_the_last_record_of_a_user_counts_within_a_batch_and_over_batches() -> None:
    state, actions = partition(), Actions(EXCLUDING)
    folded(state, actions, 60, 1)
    first = stored(state, actions)
    state.forget("u3")
    folded(state, actions, 30, 2)
    state.forget("u4")
    second = stored(state, actions)
    assert second[-1].value is None, "who is gone is erased"
    for batches in ([[*first, *second]], [first, second], [[one] for one in [*first, *second]]):
        restored, others = partition(), Actions(EXCLUDING)
        loader = Loader(restored, others, "state-0")
        for batch in batches:
            loader.load(batch)
        assert plain(restored, others) == plain(state, actions)


def test_erased_and_back_in_a_row_that_was_used_before() -> None:
    state, actions = partition(), Actions()
    folded(state, actions, 200, 3)
    records = stored(state, actions)
    restored, others = partition(), Actions()
    loader = Loader(restored, others, "state-0")
    loader.load(records)
    loader.load([one._replace(value=None) for one in records])
    assert not len(restored)
    loader.load(records)
    assert plain(restored, others) == plain(state, actions)


def test_no_users_no_records() -> None:
    assert stored(partition(), Actions()) == []
    Loader(partition(), Actions(), "state-0").load([])


def test_the_record_is_as_the_documentation_says() -> None:
    state, actions = partition(), Actions(EXCLUDING)
    for offset, (name, item) in enumerate([("view", 7), ("click", 8), ("purchase", 9)]):
        code = actions.code(name)
        fold_one(state, Event("u1", "", name, (offset + 1) * 1000), item, code, actions.excluding[code], offset + 5, 77)
    state.listed(["u1"], [6])
    (record,) = stored(state, actions)
    expected = struct.pack("<BxHHxxI4xqqqq", 1, 3, 1, len(b"view\0click\0purchase"), 3, 7, 6, 77)
    expected += struct.pack("<4Q3I4H", 7, 8, 9, 9, 1, 2, 3, 0, 1, 2, 2) + b"view\0click\0purchase"
    assert record.value == expected


def test_positions_are_kept_and_erased() -> None:
    position = Position(
        next_offset=7,
        folded_offset=9,
        newest=8,
        topic_id="t",
        partitions=2,
        history_length=H,
        excluded_length=E,
        epoch=1,
    )
    loader = Loader(partition(), Actions(), "state-0")
    loader.load([Stored(0, 0, POSITION_KEY, encode_position(position))])
    assert loader.position == position
    loader.load([Stored(1, 0, POSITION_KEY, None)])
    assert loader.position is None


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda value: b"", "header"),
        (lambda value: value[:20], "header"),
        (lambda value: bytes([9]) + value[1:], "version 9"),
        (lambda value: value[:-1], "size"),
        (lambda value: value + b"x", "size"),
        (lambda value: value[:60], "shorter"),
        (lambda value: value[:8] + struct.pack("<I", 0) + value[12:].replace(b"view", b""), "without a name"),
    ],
)
def test_what_is_no_state_is_refused_and_named(spoil: object, said: str) -> None:
    assert callable(spoil)
    state, actions = partition(), Actions()
    for offset, user in enumerate(("u1", "u2", "u3")):
        fold_one(state, Event(user, "", "view", 1000), 7, actions.code("view"), False, offset, 77)
    records = stored(state, actions)
    bad = records[1]
    assert bad.value is not None
    records[1] = bad._replace(value=spoil(bad.value))
    with pytest.raises(DataError, match=f"state-0@1: .*{said}"):
        Loader(partition(), Actions(), "state-0").load(records)


@pytest.mark.parametrize(
    ("key", "value"), [(None, b"x"), (b"\xff", b"x"), (POSITION_KEY, b"\x01{}"), (POSITION_KEY, b"")]
)
def test_a_record_of_something_else_is_refused(key: bytes | None, value: bytes) -> None:
    with pytest.raises(DataError, match="state-0@4"):
        Loader(partition(), Actions(), "state-0").load([Stored(4, 0, key, value)])


def test_longer_histories_than_are_kept_are_refused_with_what_to_do() -> None:
    state, actions = Partition(0, H + 1, E, 2), Actions()
    for offset in range(H + 1):
        fold_one(state, Event("u1", "", "view", offset * 1000), offset, actions.code("view"), False, offset, 77)
    with pytest.raises(DataError, match=f"--history-length {H + 1}"):
        Loader(partition(), Actions(), "state-0").load(stored(state, actions))


def test_a_copy_has_every_field_of_the_state() -> None:
    """Whoever adds a slab must say whether it is exact state, and then write and read it."""
    state = partition()
    exact = {name for name in vars(state) if isinstance(getattr(state, name), np.ndarray)}
    exact -= {
        "listed_items",
        "vector_key",
        "unseen",
        "excluded_row",
    }  # caches, and where in `excluded` the user's items are
    exact |= {f"excluded_{name}" for name in ("items", "actions", "length")}
    copied = {one.name.rsplit("_", 1)[0] for one in fields(Copy)} | {
        one.name.rsplit("_", 1)[0] for one in fields(type(state.gather([])))
    }
    assert exact <= copied
