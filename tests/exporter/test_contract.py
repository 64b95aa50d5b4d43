"""The model contract, held by every model of the zoo through the graph that a worker runs.

Axes: B users, L history length, N items, X excluded items, K list length.
"""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from exporter.histories import Feeds
from exporter.models import Hybrid, Plan, Recommender, create
from exporter.models.attention import SelfAttentive
from exporter.models.counts import gathered
from exporter.models.hybrid import HALF
from exporter.models.parts import Counted, Part, total
from exporter.models.twotower import TwoTower
from exporter.parity import random_feeds
from stream_worker.bundle import Bundle
from stream_worker.errors import SettingsError
from stream_worker.inference import create_session
from stream_worker.manifest import MODEL
from stream_worker.vectors import updated
from tests.exporter.conftest import CODES, LENGTH, K, N
from tests.logs import counted

USERS = 7
HIDDEN = float("-inf")


def feeds_of(seed: int, excluded: int = 8, length: int = LENGTH) -> Feeds:
    """Random users, among them one without history and one with a full one; all of it is new."""
    return random_feeds(np.random.default_rng(seed), N, USERS, length, excluded, list(CODES.values()))


def nothing_kept(bundle: Bundle, users: int = USERS) -> Feeds:
    """What the graph keeps, of users of whom nothing is."""
    return {name: np.zeros((users, *shape), np.float32) for name, shape in bundle.manifest.kept.items()}


def run(bundle: Bundle, feeds: Feeds, tensors: Feeds | None = None) -> Feeds:
    """Run the graph on the bundle's items, or on these."""
    session = create_session(bundle.path / MODEL)
    given = nothing_kept(bundle, len(feeds["now"])) | feeds | (bundle.items.tensors if tensors is None else tensors)
    names = [node.name for node in session.get_outputs()]
    return dict(zip(names, session.run(names, {n.name: given[n.name] for n in session.get_inputs()}), strict=True))


def same_lists(one: Feeds, other: Feeds) -> None:
    """Equal scores, and equal items wherever no neighbour has the same score."""
    np.testing.assert_allclose(one["scores"], other["scores"], rtol=1e-4, atol=1e-4)
    gap_BK = np.abs(np.diff(np.nan_to_num(one["scores"], neginf=-1e9), axis=1))
    apart_BK = np.pad(gap_BK, ((0, 0), (1, 0)), constant_values=1) > 1e-3
    apart_BK &= np.pad(gap_BK, ((0, 0), (0, 1)), constant_values=0) > 1e-3  # the last may tie with one off the list
    apart_BK &= np.isfinite(one["scores"])
    assert (one["items"] == other["items"])[apart_BK].all()


def missed(model: Recommender, feeds: Feeds, items_BK: NDArray[np.int64]) -> NDArray[np.float32]:
    """What each item of the list loses without each column of the history, [B, K, L]: by leaving it out.

    The others keep their weights. The score of self-attention has no parts: its reason is the event whose item is most
    like the recommended one.
    """
    tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}
    items = {name: tensor.detach() for name, tensor in model.item_tensors().items()}
    if isinstance(model, Counted | Hybrid):
        whole = addends(model, tensors, items, tensors)
        lost = [whole - addends(model, tensors, items, without(tensors, column)) for column in range(LENGTH)]
        missed_BLN = np.stack(lost, axis=1)
        return np.take_along_axis(missed_BLN, items_BK[:, None], 2).swapaxes(1, 2)
    history_BL = feeds["history_items"]
    vectors_ND = items["item_vectors"].numpy()
    if isinstance(model, TwoTower):
        with torch.inference_mode():
            weights_BL = model._weights(tensors["history_items"], tensors["history_actions"]).numpy()  # noqa: SLF001
        lost_BLD = weights_BL[..., None] * vectors_ND[np.maximum(history_BL, 0)]
        return np.where(history_BL[:, None] >= 0, vectors_ND[items_BK] @ lost_BLD.swapaxes(1, 2), HIDDEN)
    assert isinstance(model, SelfAttentive)
    alike_BKL = vectors_ND[items_BK] @ vectors_ND[np.maximum(history_BL, 0)].swapaxes(1, 2)
    in_sight_BL = (history_BL >= 0) & (np.arange(LENGTH) >= LENGTH - model.sees)
    return np.where(in_sight_BL[:, None], alike_BKL, HIDDEN)


def without(feeds: dict[str, torch.Tensor], column: int) -> dict[str, torch.Tensor]:
    """The feeds with a hole in the history."""
    history_BL = feeds["history_items"].clone()
    history_BL[:, column] = -1
    return {**feeds, "history_items": history_BL}


def addends(
    model: Counted | Hybrid,
    whole: dict[str, torch.Tensor],
    items: dict[str, torch.Tensor],
    less: dict[str, torch.Tensor],
) -> NDArray[np.float32]:
    """What the parts give each item, [B, N], of `less`, as shares of what they give all of `whole`."""
    score_BN = torch.zeros(USERS, N)
    parts = [model.part] if isinstance(model, Counted) else list(model.parts)
    weights = [1.0] if isinstance(model, Counted) else model.weights.tolist()[:-1]
    for weight, part in zip(weights, parts, strict=True):
        assert isinstance(part, Part)
        items_BCM, added_BCM = part.entries(less, items)
        x_BN = gathered(items_BCM, added_BCM / total(part.entries(whole, items)[1]), N)
        score_BN += x_BN if isinstance(model, Counted) else weight * x_BN / (x_BN + HALF)
    return score_BN.numpy()


def rows_of(outputs: Feeds, users: Any) -> Feeds:
    return {name: array[users] for name, array in outputs.items()}


def test_a_user_gets_the_same_list_alone_in_any_batch_and_with_any_padding(bundle: Bundle, seed: int) -> None:
    feeds = feeds_of(seed)
    together = run(bundle, feeds)
    order = np.random.default_rng(seed).permutation(USERS)
    same_lists(rows_of(together, order), run(bundle, rows_of(feeds, order)))
    for user in range(USERS):
        alone = rows_of(feeds, slice(user, user + 1))
        same_lists(rows_of(together, slice(user, user + 1)), run(bundle, alone))
        for length in range(max(1, int((alone["history_items"] >= 0).sum())), LENGTH):
            short = {name: a[:, -length:] if name.startswith(("history_", "new_")) else a for name, a in alone.items()}
            same_lists(rows_of(together, slice(user, user + 1)), run(bundle, short))
        wide = np.pad(alone["excluded_items"], ((0, 0), (0, 24)), constant_values=-1)
        same_lists(rows_of(together, slice(user, user + 1)), run(bundle, alone | {"excluded_items": wide}))


@pytest.mark.parametrize("length", [1, 3, LENGTH])
def test_nothing_is_nan_and_lists_are_full_and_sorted(bundle: Bundle, seed: int, length: int) -> None:
    outputs = run(bundle, feeds_of(seed, length=length))
    assert outputs["items"].shape == outputs["scores"].shape == (USERS, K)
    assert outputs["items"].dtype == np.int64
    assert outputs["scores"].dtype == np.float32
    assert np.isfinite(outputs["scores"]).all()
    assert (np.diff(outputs["scores"], axis=1) <= 0).all()
    assert all(len(set(row)) == K for row in outputs["items"].tolist())


def test_an_empty_history_gets_a_list(bundle: Bundle) -> None:
    feeds = feeds_of(0, excluded=1)
    feeds["history_items"][:] = feeds["new_items"][:] = feeds["excluded_items"][:] = -1
    outputs = run(bundle, feeds)
    assert np.isfinite(outputs["scores"]).all()
    assert (outputs["items"] == outputs["items"][0]).all()
    if "because" in outputs:
        assert (outputs["because"] == -1).all()


def test_excluded_items_are_never_recommended(bundle: Bundle, seed: int) -> None:
    rng = np.random.default_rng(seed)
    feeds = feeds_of(seed)
    feeds["excluded_items"] = np.stack([rng.permutation(N)[: N - 3] for _ in range(USERS)]).astype(np.int32)
    outputs = run(bundle, feeds)
    for items, scores, excluded in zip(outputs["items"], outputs["scores"], feeds["excluded_items"], strict=True):
        assert np.isfinite(scores).tolist() == [True] * 3 + [False] * (K - 3)
        assert set(items[:3].tolist()) == set(range(N)) - set(excluded.tolist())
        assert (scores[3:] == HIDDEN).all()


def test_row_0_is_excluded_beside_padding_and_padding_excludes_nothing(bundle: Bundle) -> None:
    feeds = feeds_of(0)
    tensors = {name: tensor.copy() for name, tensor in bundle.items.tensors.items()}
    tensors["item_bias"][0] = 1000  # so row 0 is first wherever it may be
    outside = [[0, -1], [-1, 0], [0, 0], [-1, -1], [N, -1], [N + 5, -7], [0, N]]
    feeds["excluded_items"] = np.array(outside, np.int32)
    first = run(bundle, feeds, tensors)["items"][:, 0]
    assert (first == 0).tolist() == [0 not in row for row in outside]


def test_rows_without_an_item_at_the_end_are_never_recommended(bundle: Bundle, seed: int) -> None:
    feeds = feeds_of(seed)
    tail = {name: entry.fill_value for name, entry in bundle.manifest.resident.items()}
    longer = {
        name: np.concatenate([tensor, np.full((9, *tensor.shape[1:]), tail[name], tensor.dtype)])
        for name, tensor in bundle.items.tensors.items()
    }
    same_lists(run(bundle, feeds), run(bundle, feeds, longer))


def test_an_item_row_changed_at_run_time_counts(bundle: Bundle, seed: int) -> None:
    feeds = feeds_of(seed)
    feeds["excluded_items"][:] = -1
    before = run(bundle, feeds)
    tensors = {name: tensor.copy() for name, tensor in bundle.items.tensors.items()}
    lifted, hidden = int(before["items"][0, -1]), int(before["items"][0, 0])
    tensors["item_bias"][lifted] += 1000
    tensors["item_bias"][hidden] = HIDDEN
    after = run(bundle, feeds, tensors)
    assert (after["items"][:, 0] == lifted).all()
    assert not (after["items"] == hidden).any()


def test_a_changed_vector_changes_the_users_who_saw_the_item(bundle: Bundle, seed: int) -> None:
    if "item_vectors" not in bundle.items.tensors:
        pytest.skip("the model has no item vectors")
    feeds = feeds_of(seed)
    tensors = {name: tensor.copy() for name, tensor in bundle.items.tensors.items()}
    changed = int(feeds["history_items"][-1, -1])
    tensors["item_vectors"][changed] *= -3
    tensors["item_bias"][changed] = HIDDEN  # so that only the history can show it
    same_bias = {**bundle.items.tensors, "item_bias": tensors["item_bias"]}
    before, after = run(bundle, feeds, same_bias), run(bundle, feeds, tensors)
    saw = (feeds["history_items"] == changed).any(axis=1)
    moved = np.abs(before["scores"] - after["scores"]).max(axis=1) > 1e-3
    assert moved[-1]
    assert not moved[~saw].any()


def test_because_names_the_column_that_is_missed_most(bundle: Bundle, model: Recommender, seed: int) -> None:
    if not model.explains:
        pytest.skip("the model does not explain")
    feeds = feeds_of(seed)
    outputs = run(bundle, feeds)
    missed_BKL = missed(model, feeds, outputs["items"])
    for user, because in enumerate(outputs["because"]):
        history: NDArray[np.int32] = feeds["history_items"][user]
        for place, column in enumerate(because):
            most = missed_BKL[user, place].max()
            if column >= 0:
                assert history[column] >= 0
                assert missed_BKL[user, place, column] == pytest.approx(most, rel=1e-3, abs=1e-4)
            else:
                assert most == pytest.approx(0, abs=1e-5) or not (history >= 0).any()


def test_no_item_has_no_reason(bundle: Bundle, model: Recommender) -> None:
    if not model.explains:
        pytest.skip("the model does not explain")
    feeds = feeds_of(0)
    feeds["excluded_items"] = np.tile(np.arange(N, dtype=np.int32), (USERS, 1))
    outputs = run(bundle, feeds)
    assert (outputs["scores"] == HIDDEN).all()
    assert (outputs["because"] == -1).all()


def test_events_may_come_in_any_groups(bundle: Bundle, seed: int) -> None:
    if not bundle.manifest.S:
        pytest.skip("the model keeps no vector")
    rng = np.random.default_rng(seed)
    feeds, kept = feeds_of(seed), nothing_kept(bundle)
    at_once = run(bundle, feeds)
    empty = feeds["new_items"] < 0
    for part in np.split(np.arange(LENGTH), np.sort(rng.integers(0, LENGTH + 1, 4))):
        if len(part):
            so_far = {name: a[:, : part[-1] + 1] for name, a in feeds.items() if name.startswith("history_")}
            new = {name: a[:, part] for name, a in feeds.items() if name.startswith("new_")}
            outputs = run(bundle, feeds | so_far | new | kept)
            kept = updated(kept, outputs)
    same_lists(at_once, outputs)
    for name, array in updated(nothing_kept(bundle), at_once).items():
        np.testing.assert_allclose(kept[name], array, rtol=1e-4, atol=1e-4)
        assert (array[empty.all(1)] == 0).all()


def test_what_no_event_of_the_history_wrote_into_a_ring_changes_nothing(bundle: Bundle, seed: int) -> None:
    if not any(name.startswith("ring_") for name in bundle.manifest.kept):
        pytest.skip("the model keeps no rings")
    feeds, kept = feeds_of(seed), nothing_kept(bundle)
    rng = np.random.default_rng(seed)
    others = {
        name: array if name == "vector" else rng.normal(size=array.shape).astype(np.float32) * 100
        for name, array in kept.items()
    }
    clean, stale = run(bundle, feeds | kept), run(bundle, feeds | others)
    for name in ("items", "scores", "because"):
        assert (stale[name] == clean[name]).all(), name
    written = updated(kept, clean)
    for name, array in updated(kept, stale).items():
        assert (array == written[name]).all(), name


def test_no_new_event_changes_no_vector(bundle: Bundle, seed: int) -> None:
    if not bundle.manifest.S:
        pytest.skip("the model keeps no vector")
    feeds = feeds_of(seed)
    first = run(bundle, feeds)
    kept = updated(nothing_kept(bundle), first)
    again = run(bundle, feeds | {"new_items": np.full((USERS, 1), -1, np.int32)} | kept)
    same_lists(first, again)
    for name, array in updated(kept, again).items():
        assert (array == kept[name]).all()


def test_a_history_too_short_for_two_blocks_is_refused() -> None:
    with pytest.raises(SettingsError, match="--length 2: streaming-transformer looks at 3 events at least"):
        create("streaming-transformer", Plan(N, counted(range(N, 0, -1)), 2))
    create("streaming-transformer", Plan(N, counted(range(N, 0, -1)), 3))
