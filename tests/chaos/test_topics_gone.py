"""Topics that somebody deletes under running workers."""

from typing import Any

import pytest
from kafka import KafkaAdminClient

from stream_worker.settings import TopicsSettings
from stream_worker.topics import check_topics
from tests.chaos.arena import LONG, SETTLE_S, Arena
from tests.worker.process import WorkerProcess, wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(3600 if LONG else 175)]


def delete(arena: Arena, topic: str) -> None:
    """Delete a topic, and wait until the broker says so."""
    admin = KafkaAdminClient(bootstrap_servers=arena.broker.bootstrap)
    try:
        admin.delete_topics([arena.names[topic]])
        wait_for("deleted", lambda: arena.names[topic] not in admin.list_topics())
    finally:
        admin.close()


def create(arena: Arena) -> None:
    """Make what is missing."""
    topics: dict[str, Any] = {"bootstrap": arena.broker.bootstrap, **arena.names}
    check_topics(TopicsSettings(create=True, partitions=arena.partitions, **topics))


def last_words(worker: WorkerProcess) -> str:
    """The last line of its log."""
    return worker.log.read_text().strip().splitlines()[-1]


def expect_named(arena: Arena, worker: WorkerProcess, topic: str) -> None:
    """The worker says which topic is gone, and lives on."""
    wait_for("not ready", lambda: worker.get("/readyz") == (503, f"the broker has no topic {arena.names[topic]}\n"))
    assert worker.metric("topics_missing") == 1
    assert "topics --create" in worker.log.read_text()
    assert worker.get("/livez")[0] == 200
    assert worker.process.poll() is None


def test_topics_deleted_under_a_worker_are_named_and_new_events_of_the_name_are_refused(arena: Arena) -> None:
    worker = arena.worker()
    arena.send([(f"u{number}", "i1") for number in range(20)])
    arena.expect_lists()

    delete(arena, "recommendations_topic")
    expect_named(arena, worker, "recommendations_topic")
    create(arena)
    worker.wait_ready()
    arena.send([(f"u{number}", "i2") for number in range(20)])
    wait_for("lists again", lambda: len(arena.lists()) == 20)

    arena.close_producer()
    delete(arena, "events_topic")
    expect_named(arena, worker, "events_topic")
    create(arena)
    for one in (worker, arena.worker(ready=False)):
        assert one.process.wait(SETTLE_S) == 4
        assert "deleted and made anew" in last_words(one)
        assert "name a new --state-topic" in last_words(one)


def test_a_state_topic_deleted_under_a_worker_is_named(arena: Arena) -> None:
    worker = arena.worker()
    arena.send([("u1", "i1")])
    arena.expect_lists()
    delete(arena, "state_topic")
    expect_named(arena, worker, "state_topic")
