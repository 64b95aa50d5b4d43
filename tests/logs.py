"""Logs of events for models to be built from."""

from collections.abc import Sequence

import numpy as np

from exporter.histories import Log

START_MS = 1_700_000_000_000


def counted(counts: Sequence[int]) -> Log:
    """So many views of each item, each by a user of its own."""
    item_E = np.repeat(np.arange(len(counts)), counts)
    return log_of(np.arange(len(item_E)), item_E)


def random_log(seed: int, items: int, users: int = 60, per_user: int = 12) -> Log:
    """Users who walk on to a near item, and sometimes jump; popular items come first."""
    rng = np.random.default_rng(seed)
    jumps = rng.random((users, per_user)) < 0.3
    steps = np.where(
        jumps, (items * rng.random((users, per_user)) ** 2).astype(np.int64), rng.integers(1, 3, (users, per_user))
    )
    item_E = (np.cumsum(steps, axis=1) % items).T.ravel()
    return log_of(np.tile(np.arange(users), per_user), item_E)


def log_of(user_E: Sequence[int] | np.ndarray, item_E: Sequence[int] | np.ndarray) -> Log:
    """Views, a minute apart."""
    count = len(item_E)
    return Log(
        np.asarray(user_E, np.int64),
        np.asarray(item_E, np.int64),
        np.ones(count, np.uint8),
        np.zeros(count, np.bool_),
        START_MS + 60_000 * np.arange(count),
    )
