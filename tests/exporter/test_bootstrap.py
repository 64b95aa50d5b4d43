"""Intervals that hold the truth as often as they say, with users whose events resemble one another."""

import numpy as np

from exporter.evaluate.bootstrap import intervals

TRIALS = 200
DIFFERENCE = 0.02


def paired_trial(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Hits of two models on the same lists; B finds a fixed share more. Users differ in length and in difficulty."""
    user_R = np.repeat(np.arange(80), rng.integers(1, 12, 80))
    ease_R = rng.beta(2, 8, 80)[user_R]
    draw_R = rng.random(len(user_R))
    return user_R, np.stack([draw_R < ease_R, draw_R < ease_R + DIFFERENCE], axis=1).astype(np.float64)


def test_the_paired_interval_covers_the_true_difference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    covered = 0
    for trial in range(TRIALS):
        user_R, hits_RM = paired_trial(rng)
        found = intervals(hits_RM[:, 1:] - hits_RM[:, :1], user_R, trial, resamples=300)
        covered += bool(found.low_M[0] <= DIFFERENCE <= found.high_M[0])
    assert covered > 0.86 * TRIALS


def test_pairing_is_narrower_than_two_intervals(seed: int) -> None:
    user_R, hits_RM = paired_trial(np.random.default_rng(seed))
    alone = intervals(hits_RM, user_R, 0)
    paired = intervals(hits_RM[:, 1:] - hits_RM[:, :1], user_R, 0)
    assert paired.high_M[0] - paired.low_M[0] < alone.high_M[0] - alone.low_M[0]


def test_users_not_lists_are_drawn() -> None:
    user_R = np.repeat(np.arange(50), 100)
    values_RM = np.repeat(np.random.default_rng(0).random(50), 100)[:, None]
    apart, together = intervals(values_RM, np.arange(5000), 0), intervals(values_RM, user_R, 0)
    assert together.high_M[0] - together.low_M[0] > 5 * (apart.high_M[0] - apart.low_M[0])


def test_it_is_the_plain_bootstrap_and_the_same_seed_gives_the_same() -> None:
    rng = np.random.default_rng(0)
    values_RM = rng.normal(size=(400, 2))
    found = intervals(values_RM, np.arange(400), 1)
    plain = [values_RM[rng.integers(0, 400, 400)].mean(axis=0) for _ in range(2000)]
    np.testing.assert_allclose(found.mean_M, values_RM.mean(axis=0))
    np.testing.assert_allclose(found.low_M, np.quantile(plain, 0.025, axis=0), atol=0.02)
    np.testing.assert_allclose(found.high_M, np.quantile(plain, 0.975, axis=0), atol=0.02)
    np.testing.assert_array_equal(found.low_M, intervals(values_RM, np.arange(400), 1).low_M)
