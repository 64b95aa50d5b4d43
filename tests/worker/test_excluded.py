"""The slab of excluded items: a row only for those who have some, used again once it is free."""

import numpy as np

from stream_worker.excluded import FIRST_ROWS, NONE, Excluded


def test_a_user_without_such_items_takes_no_memory() -> None:
    excluded = Excluded(4)
    before = excluded.nbytes
    rows = excluded.replace(
        np.zeros(1000, np.int32),
        np.zeros((1000, 4), np.uint64),
        np.zeros((1000, 4), np.uint16),
        np.zeros(1000, np.int32),
    )
    assert not rows.any()
    assert excluded.nbytes == before


def test_a_row_that_was_released_comes_back_empty() -> None:
    excluded = Excluded(4)
    row = excluded.note(NONE, 7, 1)
    other = excluded.note(NONE, 8, 1)
    excluded.release(row)
    assert excluded.note(NONE, 9, 2) == row
    assert excluded.items[row, : excluded.length[row]].tolist() == [9]
    assert excluded.items[other, : excluded.length[other]].tolist() == [8]
    assert excluded.length[NONE] == 0


def test_rows_follow_what_replaces_them(seed: int) -> None:
    """Against a dictionary, over many growths of the slab."""
    rng = np.random.default_rng(seed)
    users = 5 * FIRST_ROWS
    excluded, rows_B = Excluded(3), np.zeros(users, np.int32)
    held: dict[int, list[int]] = {}
    for _ in range(30):
        some = rng.permutation(users)[: users // 2]
        length_B = rng.integers(0, 4, len(some)).astype(np.int32)
        items_BE = rng.integers(1, 2**60, (len(some), 3)).astype(np.uint64)
        rows_B[some] = excluded.replace(rows_B[some], items_BE, np.ones((len(some), 3), np.uint16), length_B)
        held |= {int(user): items_BE[b, : length_B[b]].tolist() for b, user in enumerate(some)}
        for user in rng.integers(0, users, 20).tolist():
            item = int(rng.integers(1, 2**60))
            rows_B[user] = excluded.note(int(rows_B[user]), item, 1)
            held[user] = [*held.get(user, []), item][-3:]
    found = {user: excluded.items[rows_B[user], : excluded.length[rows_B[user]]].tolist() for user in range(users)}
    assert found == {user: held.get(user, []) for user in range(users)}
    used = rows_B[rows_B != NONE]
    assert len(set(used.tolist())) == len(used) == sum(bool(items) for items in held.values())
