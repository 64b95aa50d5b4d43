"""States to arrays."""

import numpy as np
import pytest

from stream_worker.batch import Prepared, Vocabulary, excluded_bucket, prepare, right_align, slices
from stream_worker.bundle import Bundle
from stream_worker.manifest import Buckets
from stream_worker.messages import item_hash
from stream_worker.state import ALL_UNSEEN, Histories

L = 4


def histories(*users: list[tuple[str, int, int]], excluded: list[tuple[str, int]] | None = None) -> Histories:
    """Users from (item, second, action code), oldest first; `excluded` is the first user's."""
    H, E = 6, 3
    B = len(users)
    one = Histories(
        np.zeros((B, H), np.uint64), np.zeros((B, H), np.uint32), np.zeros((B, H), np.uint16), np.zeros(B, np.int32),
        np.zeros((B, E), np.uint64), np.zeros((B, E), np.uint16), np.zeros(B, np.int32),
    )  # fmt: skip
    for b, events in enumerate(users):
        one.length_B[b] = len(events)
        for place, (item, second, action) in enumerate(events):
            one.items_BH[b, place], one.times_BH[b, place], one.actions_BH[b, place] = item_hash(item), second, action
    for place, (item, action) in enumerate(excluded or []):
        one.excluded_items_BE[0, place], one.excluded_actions_BE[0, place] = item_hash(item), action
        one.excluded_length_B[0] += 1
    return one


VIEW, ODD, BOUGHT = 0, 1, 2
VOCABULARY = Vocabulary.of(["view", "odd", "purchase"], {"view": 1, "purchase": 4}, ["purchase"])


FEEDS = frozenset({"history_items"})


def prepared(bundle: Bundle, some: Histories, exclude_seen: bool = True) -> Prepared:
    return prepare(some, np.zeros(len(some), np.int32), bundle.items, VOCABULARY, L, exclude_seen)


def test_known_items_are_right_aligned_newest_last_and_trimmed_to_length(sasrec: Bundle) -> None:
    one = prepared(
        sasrec,
        histories(
            [("i1", 10, VIEW), ("nowhere", 11, VIEW), ("i2", 12, ODD), ("i3", 13, BOUGHT)],
            [(f"i{number}", 20 + number, VIEW) for number in range(6)],
            [],
        ),
    )
    assert one.history_items_BL.tolist() == [[-1, -1, 1, 3], [2, 3, 4, 5], [-1, -1, -1, -1]]
    assert one.history_actions_BL.tolist() == [[0, 0, 1, 4], [1, 1, 1, 1], [0, 0, 0, 0]]
    assert one.history_times_BL.tolist() == [[0, 0, 10_000, 13_000], [22_000, 23_000, 24_000, 25_000], [0, 0, 0, 0]]
    assert one.history_length_B.tolist() == [2, 4, 0]


def test_now_is_the_newest_event_known_or_not(sasrec: Bundle) -> None:
    one = prepared(sasrec, histories([("i1", 10, VIEW), ("nowhere", 99, VIEW)], []))
    assert one.now_B.tolist() == [99_000, 0]


def test_seen_and_excluded_items_are_excluded_by_the_manifests_actions(sasrec: Bundle) -> None:
    some = histories([("i1", 1, VIEW), ("i2", 2, ODD), ("i3", 3, BOUGHT)], excluded=[("i7", BOUGHT), ("i8", VIEW)])

    def excluded(exclude_seen: bool) -> list[int]:
        one = prepared(sasrec, some, exclude_seen)
        return [int(row) for row in one.excluded_items_BX[0] if row >= 0]

    assert excluded(True) == [1, 2, 3, 7]
    assert excluded(False) == [3, 7]


def test_slices_are_sorted_by_length_and_padded_to_buckets(sasrec: Bundle) -> None:
    lengths = [4, 1, 0, 3, 1]
    one = prepared(sasrec, histories(*[[(f"i{place}", place, VIEW) for place in range(n)] for n in lengths]))
    batches = list(slices(one, Buckets([1, 2, 3], [1, 2, 4], [4]), FEEDS, 3))
    assert [users_b.tolist() for users_b, _ in batches] == [[2, 1, 4], [3, 0]]
    assert [feeds["history_items"].shape for _, feeds in batches] == [(3, 1), (2, 4)]
    assert batches[0][1]["history_items"].tolist() == [[-1], [0], [0]]
    assert {name: array.shape[0] for name, array in batches[1][1].items()} == dict.fromkeys(batches[1][1], 2)
    assert batches[0][1]["excluded_items"].shape[1] == 8


def test_without_buckets_nothing_is_padded_but_shorter_histories(sasrec: Bundle) -> None:
    lengths = [3, 1, 0, 3, 0]
    one = prepared(sasrec, histories(*[[(f"i{place}", place, VIEW) for place in range(n)] for n in lengths]))
    batches = list(slices(one, None, FEEDS, 3))
    assert [users_b.tolist() for users_b, _ in batches] == [[2, 4, 1], [0, 3]]
    assert [feeds["history_items"].tolist() for _, feeds in batches] == [[[-1], [-1], [0]], [[0, 1, 2], [0, 1, 2]]]
    (nobody,) = slices(prepared(sasrec, histories([])), None, FEEDS, 3)
    assert nobody[1]["history_items"].tolist() == [[-1]], "a graph wants one place at least"


def test_rows_beyond_the_users_are_padding(sasrec: Bundle) -> None:
    one = prepared(sasrec, histories(*[[("i1", 1, VIEW)]] * 3))
    ((users_b, feeds),) = slices(one, Buckets([1, 4], [4], [4]), FEEDS, 4)
    assert users_b.tolist() == [0, 1, 2]
    assert feeds["history_items"].tolist()[3] == [-1] * 4
    assert feeds["now"].tolist() == [1000, 1000, 1000, 0]


@pytest.mark.parametrize(("length", "bucket"), [(0, 8), (1, 8), (8, 8), (9, 16), (64, 64), (65, 128)])
def test_excluded_items_have_few_shapes(length: int, bucket: int) -> None:
    assert excluded_bucket(length) == bucket


def test_right_align_keeps_order_against_a_plain_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    keep_BH = rng.random((50, 9)) < 0.5
    values_BH = rng.integers(0, 100, (50, 9))
    (found_BL,), length_B = right_align(keep_BH, 4, ((values_BH, np.int64, -1),))
    for b in range(50):
        kept = values_BH[b][keep_BH[b]][-4:].tolist()
        assert found_BL[b].tolist() == [-1] * (4 - len(kept)) + kept
        assert length_B[b] == len(kept)


def test_a_recurrent_model_is_fed_what_its_vector_has_not_seen(sasrec: Bundle) -> None:
    events = [(f"i{number}", 20 + number, VIEW) for number in range(5)]
    some = histories(events[:3], events, [*events[:2], ("nowhere", 40, VIEW)], events, [])
    unseen_B = np.array([1, 5, 2, ALL_UNSEEN, 0], np.int32)
    one = prepare(some, unseen_B, sasrec.items, VOCABULARY, L, True)
    assert one.new_length_B.tolist() == [1, 4, 1, 4, 0], "the second has more new ones than the graph could see"
    assert one.rebuilt_B.tolist() == [False, True, False, True, False]
    feeds_of: dict[int, list[int]] = {}
    for users_b, feeds in slices(one, Buckets([1, 3], [4], [1, 2, 4]), {"new_items"}, 3):
        assert feeds["new_items"].shape == feeds["new_actions"].shape == feeds["new_times"].shape
        for place, user in enumerate(users_b.tolist()):
            items = feeds["new_items"][place]
            assert ((feeds["new_actions"][place] > 0) == (items >= 0)).all()
            assert ((feeds["new_times"][place] > 0) == (items >= 0)).all()
            feeds_of[user] = items[items >= 0].tolist()
    assert feeds_of == {0: [2], 1: [1, 2, 3, 4], 2: [1], 3: [1, 2, 3, 4], 4: []}
