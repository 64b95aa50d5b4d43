"""What the model is evaluated on is what the worker feeds it: the same events, through the trainer and the worker."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from exporter.data import clean
from exporter.histories import Horizon, Log, feeds_before
from stream_worker.batch import Vocabulary, prepare
from stream_worker.messages import Event, item_hash
from stream_worker.state import Actions, Partition
from tests.worker.world import fold_one

ITEMS = [f"i{row}" for row in range(20)]
CODES = {"view": 1, "click": 2, "purchase": 4}
EXCLUDING = ["purchase", "hide"]
HORIZON = Horizon(length=6, kept=9, kept_excluding=50)
AT = 1_700_000_000_000


class Index:
    """Rows of items by a dictionary."""

    def __init__(self) -> None:
        self._row = {item_hash(name): row for row, name in enumerate(ITEMS)}

    def rows_of(self, hashes: NDArray[np.uint64]) -> NDArray[np.int32]:
        rows = [self._row.get(int(item), -1) for item in hashes.ravel()]
        return np.array(rows, np.int32).reshape(hashes.shape)


def test_the_worker_feeds_what_the_evaluation_fed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = 400
    raw = pl.DataFrame(
        {
            "user": [f"u{n}" for n in rng.integers(0, 8, count)],
            "item": [f"i{n}" for n in rng.integers(0, 24, count)],  # the last four are in no catalogue
            "action": rng.choice(["view", "view", "click", "hide", "share"], count),
            "has_time": True,
            "time": AT + rng.integers(0, 200_000, count),
        }
    )
    events, _ = clean(raw)
    log = Log.of(events, ITEMS, CODES, EXCLUDING)
    actions, index = Actions(frozenset(EXCLUDING)), Index()
    partition = Partition(0, HORIZON.kept or 0, HORIZON.kept_excluding or 0, 5)
    for number, (user, item, action, time) in enumerate(events.rows()):
        row = partition.row(user)
        if row is not None:
            vocabulary = Vocabulary.of(actions.names, CODES, EXCLUDING)
            histories = partition.gather([row])
            unseen_B = partition.unseen[[row]]
            worker = prepare(histories, unseen_B, index, vocabulary, HORIZON.length, HORIZON.exclude_seen)
            trainer = feeds_before(log, np.array([number]), HORIZON)
            length = trainer["history_items"].shape[1]
            assert worker.history_items_BL[:, -length:].tolist() == trainer["history_items"].tolist()
            assert worker.history_actions_BL[:, -length:].tolist() == trainer["history_actions"].tolist()
            assert worker.history_times_BL[:, -length:].tolist() == trainer["history_times"].tolist()
            assert (worker.history_items_BL[:, :-length] == -1).all()
            assert worker.now_B.tolist() == trainer["now"].tolist()
            assert set(worker.excluded_items_BX[0]) | {-1} == set(trainer["excluded_items"][0]) | {-1}
        event = Event(user=user, item=item, action=action, time_ms=time)
        code = actions.code(action)
        fold_one(partition, event, item_hash(item), code, action in EXCLUDING, number, time)
