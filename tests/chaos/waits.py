"""How long each event waited for its list, from the topics alone."""

import json
from typing import Any

from stream_worker.messages import decode_list
from tests.worker.process import Stage


def waits(stage: Stage) -> list[float]:
    """Seconds from the Kafka timestamp of each event to that of the first list that covers it, shortest first.

    Left out are what makes no list: what is no event, repeats, and events whose user was forgotten before a list.
    """
    pending: dict[bytes, list[tuple[int, int]]] = {}  # (offset, timestamp) by user, in the order of the log
    seen: set[tuple[bytes, str, str, int]] = set()
    for record in stage.records("events_topic"):  # a user's events lie in one partition
        event = parse(record)
        of_user = pending.setdefault(record.key, [])
        if event.get("action") == "forget":
            of_user.clear()
        elif "item" in event and event.get("user") == record.key.decode():
            second = event.get("time", record.timestamp) // 1000
            repeat = (record.key, event["item"], event.get("action", "view"), second)
            if repeat not in seen:
                of_user.append((record.offset, record.timestamp))
            seen.add(repeat)
    found = []
    for record in stage.records("recommendations_topic"):  # and so do the lists
        if record.value is None:
            continue
        covered = decode_list(record.value).offset
        of_user = pending[record.key]
        while of_user and of_user[0][0] <= covered:
            found.append(max(0, record.timestamp - of_user.pop(0)[1]) / 1000)
    return sorted(found)


def parse(record: Any) -> dict[str, Any]:
    """The event, or an empty one."""
    try:
        event = json.loads(record.value or b"")
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}
