"""How the change of lists is counted.

Axes: R ranked events, K list length.
"""

import numpy as np
import pytest

from exporter.evaluate.bootstrap import intervals
from exporter.impact import gains, overlap


def test_gains_are_ndcg_with_one_relevant_item() -> None:
    rows_RK = np.array([[4, 2, 7], [4, 2, 7], [4, 2, 7], [4, 2, -1]])
    np.testing.assert_allclose(gains(rows_RK, np.array([4, 7, 9, -1])), [1, 0.5, 0, 0])
    long_RK = np.arange(20)[None]
    assert gains(long_RK, np.array([9])) > 0
    assert gains(long_RK, np.array([10])) == 0


def test_overlap_counts_items_in_any_order_and_no_padding() -> None:
    assert overlap(np.array([[1, 2, 3, -1]]), np.array([[3, 1, 9, -1]])) == pytest.approx(2 / 3)


def test_the_interval_holds_the_mean_and_draws_users_whole() -> None:
    rng = np.random.default_rng(0)
    user_R = np.repeat(np.arange(100), 50)
    by_user = rng.standard_normal(100)
    _, (low,), (high,) = intervals(by_user[user_R][:, None], user_R, 1)
    assert low < by_user.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * by_user.std() / 10, rel=0.15), "as if there were 100 events, not 5000"
    _, (low,), (high,) = intervals(np.full((9, 1), 0.25), np.arange(9), 0)
    assert (low, high) == (0.25, 0.25)
