"""The fold once more, plain and slow, sharing nothing with the worker's: what the state must equal."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stream_worker.messages import item_hash


@dataclass
class User:
    """One user: (second, offset, item, action) sorted, and what else is exact."""

    history: list[tuple[int, int, str, str]] = field(default_factory=list)
    excluded: list[tuple[str, str]] = field(default_factory=list)
    events: int = 0
    applied: int = -1
    received: int = 0  # Kafka timestamp of the last event


def fold_log(
    log: Sequence[dict[str, Any] | None],
    history_length: int,
    excluded_length: int,
    excluding: frozenset[str],
    max_users: int | None = None,
    ttl_ms: int | None = None,
) -> dict[str, User]:
    """The users after these events; an event's offset is its place in the log, `received` its record's timestamp.

    None stands for a record that is no event.
    """
    users: dict[str, User] = {}
    newest = 0
    for offset, event in enumerate(log):
        if event is None:
            continue
        if ttl_ms is not None and event["received"] > newest:
            step = ttl_ms // 16
            if event["received"] // step > newest // step:
                least = event["received"] // step * step - ttl_ms
                users = {name: user for name, user in users.items() if user.received >= least}
            newest = event["received"]
        name, item, action, second = event["user"], event.get("item", ""), event["action"], event["time"] // 1000
        if action == "forget":
            users.pop(name, None)
            continue
        while max_users is not None and name not in users and len(users) >= max_users:
            del users[min(users, key=lambda one: users[one].applied)]
        user = users.setdefault(name, User())
        if any((second, item, action) == (at, what, how) for at, _, what, how in user.history):
            continue
        full = len(user.history) == history_length
        if not (full and second < user.history[0][0]):
            user.history = sorted([*user.history, (second, offset, item, action)])[-history_length:]
        if action in excluding:
            user.excluded = [pair for pair in user.excluded if pair != (item, action)]
            user.excluded = [*user.excluded, (item, action)][-excluded_length:] if excluded_length else []
        user.events += 1
        user.applied = offset
        user.received = event.get("received", 0)
    return users


def expected(user: User) -> dict[str, Any]:
    """A user in the terms of `tests.worker.world.exact`."""
    return {
        "history": [(item_hash(item), second, action) for second, _, item, action in user.history],
        "excluded": [(item_hash(item), action) for item, action in user.excluded],
        "events": user.events,
        "applied": user.applied,
        "received": user.received,
    }
