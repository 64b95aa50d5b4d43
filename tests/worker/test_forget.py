"""A forgotten user stays forgotten: on the state topic, on the lists, after restarts; proven from the topics."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from demo.broker import Broker
from stream_worker.errors import DataError, SettingsError
from stream_worker.forget import forget_user, verify
from stream_worker.messages import decode_list
from stream_worker.settings import ForgetSettings
from stream_worker.transports.kafka_offline import KafkaOffline
from tests.worker.process import Stage, wait_for


@pytest.fixture
def stage(broker: Broker, models: dict[str, Path], tmp_path: Path, unique: Callable[[str], str]) -> Iterator[Stage]:
    """Topics of one's own on the shared broker."""
    with Stage(broker, models["sasrec"], tmp_path, unique, partitions=3) as stage:
        yield stage


def forget(stage: Stage, user: str, **changes: Any) -> list[str]:
    """What the command prints."""
    names: dict[str, Any] = {**stage.names, **changes}
    settings = ForgetSettings(bootstrap=stage.broker.bootstrap, group=stage.group, user=user, **names)
    with KafkaOffline(settings) as kafka:
        return list((verify if settings.verify else forget_user)(settings, kafka))


def proven(stage: Stage, user: str) -> bool:
    try:
        return forget(stage, user, verify=True)[-1] == "forgotten"
    except DataError:
        return False


def lists_of(stage: Stage, user: str) -> list[int | None]:
    """`events` of each list of a user, None for a tombstone, in the order of the topic."""
    records = [record for record in stage.records("recommendations_topic") if record.key == user.encode()]
    return [decode_list(record.value).events if record.value else None for record in records]


def test_forget_erases_state_and_lists_and_prints_the_proof(stage: Stage) -> None:
    worker = stage.worker()
    stage.send([("u1", "i1"), ("u2", "i2"), ("u1", "i3")])
    wait_for("lists", lambda: stage.lists().keys() == {"u1", "u2"})
    command = [sys.executable, "-m", "stream_worker", "forget", "--bootstrap", stage.broker.bootstrap]
    command += ["--group", stage.group, *stage.flags]
    done = subprocess.run([*command, "u1"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert 'wrote {"user":"u1","action":"forget"} to 0@' in done.stdout
    assert "past the record in all partitions" in done.stdout
    assert done.stdout.count("the newest is a tombstone at") == 2
    assert done.stdout.endswith("\nforgotten\n")
    assert lists_of(stage, "u1")[-1] is None
    assert None not in lists_of(stage, "u2")
    assert worker.metric("users") == 1
    assert "u1" not in worker.log.read_text()

    assert proven(stage, "u1")
    done = subprocess.run([*command, "u2", "--verify"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "still holds the user" in done.stderr) == (4, True)


def test_what_happened_before_a_forget_does_not_come_back_with_the_user(stage: Stage) -> None:
    first = stage.worker()
    stage.send([("u1", "i1"), ("u1", "i2"), ("u2", "i2")])
    wait_for("lists", lambda: stage.lists().keys() == {"u1", "u2"})
    forget(stage, "u1")
    first.kill()
    second = stage.worker()
    assert second.metric("users") == 1
    assert lists_of(stage, "u1")[-1] is None
    stage.send([("u1", "i9")])
    wait_for("a list of the events since", lambda: lists_of(stage, "u1")[-1] == 1)
    wait_for("a state of the events since", lambda: "a value at" in forget(stage, "u1", verify=True)[-3])


def test_a_forget_that_no_worker_folds_is_said_and_holds_once_one_does(stage: Stage) -> None:
    worker = stage.worker()
    stage.send([("u1", "i1")])
    wait_for("a list", lambda: stage.lists().keys() == {"u1"})
    assert worker.terminate()[0] == 0
    with pytest.raises(DataError, match="Is a worker running"):
        forget(stage, "u1", timeout_s=0.5)
    with pytest.raises(DataError, match="has not folded 0@"):
        forget(stage, "u1", verify=True)
    stage.worker()
    wait_for("the proof", lambda: proven(stage, "u1"))


def test_a_record_that_a_team_writes_itself_counts_as_much(stage: Stage) -> None:
    stage.worker()
    stage.send([("u1", "i1")])
    wait_for("a list", lambda: stage.lists().keys() == {"u1"})
    stage.send_raw(msgspec.json.encode({"user": "u1", "action": "forget"}), b"u1")  # to the user's own partition
    wait_for("the proof", lambda: proven(stage, "u1"))


def test_the_record_is_in_the_teams_own_field_names(stage: Stage) -> None:
    stage.worker("--event-user-field", "who.id", "--event-action-field", "who.did")
    stage.send_raw(msgspec.json.encode({"who": {"id": "u1"}, "item": "i1"}), b"u1")
    wait_for("a list", lambda: lists_of(stage, "u1") == [1])
    lines = forget(stage, "u1", event_user_field="who.id", event_action_field="who.did")
    assert 'wrote {"who":{"id":"u1","did":"forget"}}' in lines[0]
    assert lines[-1] == "forgotten"


@pytest.mark.parametrize("user", ["*", "", "u\n1", "u" * 257])
def test_what_no_user_can_be_called_is_refused(stage: Stage, user: str) -> None:
    with pytest.raises(SettingsError, match="Name the user as in the events"):
        forget(stage, user)


def test_events_that_are_not_json_are_not_written_as_json(stage: Stage) -> None:
    with pytest.raises(SettingsError, match="write the forget event yourself"):
        forget(stage, "u1", event_decoder="tests.worker.test_messages:semicolons")
