"""The pointer against its formula, event by event."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch.nn import functional

from exporter.models.ages import DAY_MS, EDGES_MS, STEPS
from exporter.models.copying import QUERY, Copies, Copying
from exporter.models.sampled import sampled_softmax
from tests.logs import START_MS

USERS, LENGTH, DIM, ITEMS = 3, 9, 8, 5


@pytest.fixture
def pointer() -> Copying:
    torch.manual_seed(0)
    copying = Copying(DIM)
    with torch.no_grad():
        copying.steps_S1.copy_(torch.randn(STEPS, 1))
    return copying


def test_an_item_gets_the_log_of_what_its_events_add_up_to(pointer: Copying, seed: int) -> None:
    rng = np.random.default_rng(seed)
    history_BL = torch.from_numpy(rng.integers(0, ITEMS, (USERS, LENGTH)))
    history_BL[1, :4] = history_BL[2] = -1
    vectors_ND = torch.randn(ITEMS, DIM)
    times_BL = START_MS + torch.from_numpy(np.sort(rng.integers(0, 200 * DAY_MS, (USERS, LENGTH)), axis=1))
    hidden_BLD = torch.randn(USERS, LENGTH, DIM)
    with torch.inference_mode():
        items_BLD = functional.embedding(history_BL.clamp(min=0), vectors_ND)
        rows_BLL, added_BLL = pointer(history_BL, items_BLD, times_BL, hidden_BLD, times_BL)
        last = pointer(history_BL, items_BLD, times_BL, hidden_BLD[:, -1:], times_BL[:, -1:])
        found_BLN = torch.zeros(USERS, LENGTH, ITEMS).scatter_add(2, rows_BLL, added_BLL)
        for user, place, item in product(range(USERS), range(LENGTH), range(ITEMS)):
            strength = 0.0
            for event in range(place + 1):
                if history_BL[user, event] == item:
                    age = int(times_BL[user, place] - times_BL[user, event])
                    step = sum(age >= edge for edge in EDGES_MS)
                    match = pointer.query(hidden_BLD[user, place]) @ pointer.key(vectors_ND[item]) / math.sqrt(QUERY)
                    worth = pointer.worth(vectors_ND[item])[0]
                    strength += math.exp(pointer.steps_S1[step, 0] + worth + match)
            assert found_BLN[user, place, item].item() == pytest.approx(math.log1p(strength), rel=1e-4, abs=1e-5)
    torch.testing.assert_close(last.added_BQL[:, 0], added_BLL[:, -1])


def test_the_sampled_softmax_knows_the_copies_too(seed: int) -> None:
    torch.manual_seed(seed)
    hidden_PD, vectors_ND, bias_N = torch.randn(64, DIM), torch.randn(200, DIM), torch.randn(200)
    target_P = torch.randint(0, 200, (64,))
    rows_PL = torch.stack([torch.randperm(200)[:LENGTH] for _ in target_P])
    rows_PL[::2, 0] = target_P[::2]  # half of the targets are among them
    rows_PL[:, 1:] = torch.where(rows_PL[:, 1:] == target_P[:, None], 0, rows_PL[:, 1:])
    added_PL = torch.rand(64, LENGTH) * 3
    added_PL[:, -1] = 0  # an older event of an item
    added_PL = torch.where(rows_PL == 0, 0, added_PL)
    logits_PN = (hidden_PD @ vectors_ND.T + bias_N).scatter_add(1, rows_PL, added_PL)
    full = functional.cross_entropy(logits_PN, target_P)
    # Drawn often enough, the items without their copies hardly weigh beside what stands in every sum.
    found = sampled_softmax(
        hidden_PD, target_P, vectors_ND, bias_N, torch.ones(200), 40_000, copies=Copies(rows_PL, added_PL)
    )
    without = sampled_softmax(hidden_PD, target_P, vectors_ND, bias_N, torch.ones(200), 40_000)
    assert abs(found - full) < 0.15
    assert abs(found - full) < abs(without - full) / 2
