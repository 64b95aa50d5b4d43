"""States of users as workers before would have left them on a state topic, so that a worker can begin with them."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from kafka import KafkaProducer
from numpy.typing import NDArray

from stream_worker.changelog import POSITION_KEY, Position, changes, encode_position
from stream_worker.settings import Settings
from stream_worker.state import NO_OFFSET, Actions, Copy, Histories
from stream_worker.transports.kafka_checkpoint import checkpoint_producer_options

HISTORY_LENGTH: int = Settings.model_fields["history_length"].default
EXCLUDED_LENGTH: int = Settings.model_fields["excluded_length"].default


def state(
    users: list[str], items_BH: NDArray[np.uint64], times_BH: NDArray[np.uint32], actions_BH: NDArray[np.uint16],
    length_B: NDArray[np.int32], excluding_A: NDArray[np.bool_],
) -> Copy:  # fmt: skip
    """Users with these histories, of which no event lies on the events topic any more.

    Args:
        users, items_BH, times_BH, actions_BH, length_B: as in `Histories`, H at most the default history length.
        excluding_A: by code of an action.
    """
    excluded_BH = excluding_A[actions_BH] & (np.arange(items_BH.shape[1]) < length_B[:, None])
    order_BE = np.argsort(~excluded_BH, axis=1, kind="stable")[:, :EXCLUDED_LENGTH]
    none_B = np.full(len(users), NO_OFFSET)
    return Copy(
        users,
        Histories(
            items_BH,
            times_BH,
            actions_BH,
            length_B,
            np.take_along_axis(items_BH, order_BE, 1),
            np.take_along_axis(actions_BH, order_BE, 1),
            np.minimum(excluded_BH.sum(1), EXCLUDED_LENGTH).astype(np.int32),
        ),
        events_B=length_B.astype(np.int64),
        applied_offset_B=none_B,
        listed_offset_B=none_B,
        timestamp_B=times_BH[np.arange(len(users)), length_B - 1].astype(np.int64) * 1000,
        gone=[],
    )


def write(
    bootstrap: str, topic: str, states: Iterable[Copy], actions: Actions, topic_id: str, next_offset: int,
    history_length: int = HISTORY_LENGTH,
) -> int:  # fmt: skip
    """Onto partition 0 of a state topic, as a worker does, a transaction for each; returns how many users.

    Args:
        topic_id, next_offset: of the events topic, and where a worker goes on there.
        history_length: H of that worker.
    """
    position = Position(
        next_offset=next_offset,
        folded_offset=next_offset,
        newest=0,
        topic_id=topic_id,
        partitions=1,
        history_length=history_length,
        excluded_length=EXCLUDED_LENGTH,
    )
    settings = Settings(bundle=Path(), bootstrap=bootstrap)  # it serves no model
    producer = KafkaProducer(**checkpoint_producer_options(settings, f"{topic}-before"))
    producer.init_transactions()
    users = 0
    for copy in states:
        producer.begin_transaction()
        for change in changes(0, copy, actions):
            producer.send(topic, change.value, change.key, partition=0)
        producer.send(topic, encode_position(position), POSITION_KEY, partition=0)
        producer.commit_transaction()
        users += len(copy.users)
    producer.close()
    return users
