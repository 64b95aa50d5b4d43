"""Real workers on a real Kafka: two share the load, one dies, the broker goes away; nothing is lost."""

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from demo.broker import Broker, free_port
from tests import needs
from tests.worker.process import CLIENTS, Stage, wait_for

Make = Callable[[Broker], Stage]


@pytest.fixture
def stage(
    request: pytest.FixtureRequest,
    broker: Broker,
    models: dict[str, Path],
    tmp_path: Path,
    unique: Callable[[str], str],
) -> Iterator[Stage]:
    """Topics of one's own on the shared broker; its parameter is the workers' client."""
    with Stage(broker, models["sasrec"], tmp_path, unique, getattr(request, "param", CLIENTS[0])) as stage:
        yield stage


both_clients = pytest.mark.parametrize("stage", CLIENTS, indirect=True)


def some_events(seed: int, count: int, users: int = 200) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    return [(f"u{rng.randrange(users)}", f"i{rng.randrange(60)}") for _ in range(count)]


def test_an_event_typed_by_hand_becomes_a_list(stage: Stage) -> None:
    worker = stage.worker()
    kcat, bootstrap = needs.command("kcat"), stage.broker.bootstrap
    subprocess.run(
        [kcat, "-b", bootstrap, "-t", stage.names["events_topic"], "-P", "-K", "|", "-X", "partitioner=murmur2_random"],
        input=b'u17|{"user": "u17", "item": "i42"}\n',
        check=True,
    )
    consume = [kcat, "-b", bootstrap, "-t", stage.names["recommendations_topic"], "-C", "-e", "-q", "-f", "%k %s\n"]

    def arrived() -> bytes:
        return subprocess.run(consume, capture_output=True, check=True).stdout

    key, _, value = wait_for("a list", arrived).decode().partition(" ")
    top = json.loads(value)
    assert (key, top["user"], top["events"], len(top["items"])) == ("u17", "u17", 1, 5)
    assert worker.metric("events_total") == 1
    assert worker.metric("event_to_list_seconds_count") == 1


@both_clients
def test_two_workers_share_the_partitions_and_a_killed_ones_users_move_with_their_history(
    stage: Stage, seed: int
) -> None:
    """The second worker has the other client: a deployment can change it worker by worker."""
    (other,) = {*CLIENTS} - {stage.client}
    first, second = stage.worker(), stage.worker("--client", other)
    wait_for("two partitions each", lambda: first.partitions() == second.partitions() == 2)
    stage.send(some_events(seed, 3000))
    wait_for("all lists", stage.covered)
    second.kill()
    stage.send(some_events(seed + 1, 1000))
    wait_for("all lists from the survivor", stage.covered)
    assert first.get("/livez")[0] == 200

    third = stage.worker()
    stage.send(some_events(seed + 2, 1000))
    wait_for("all lists with a third", stage.covered)
    assert third.metric("users") > 0


@both_clients
def test_sigterm_publishes_commits_and_leaves_within_ten_seconds(stage: Stage, seed: int) -> None:
    worker = stage.worker()
    stage.send(some_events(seed, 3000))
    wait_for("some lists", lambda: worker.metric("lists_total") > 0)
    code, seconds = worker.terminate()
    assert (code, seconds < 10) == (0, True)
    successor = stage.worker()
    wait_for("all lists", stage.covered)
    assert "drained" in worker.log.read_text()
    assert successor.metric("restore_seconds_count") == stage.partitions


@both_clients
def test_a_worker_may_be_stopped_while_it_still_waits_for_the_broker(stage: Stage) -> None:
    stage.bootstrap = f"127.0.0.1:{free_port()}"
    worker = stage.worker(ready=False)
    wait_for("the wait for the broker", lambda: "waiting for the broker" in worker.get("/readyz")[1])
    code, seconds = worker.terminate()
    assert (code, seconds < 15) == (0, True), worker.log.read_text()
    assert "Traceback" not in worker.log.read_text()


@pytest.mark.kafka
def test_a_session_that_the_brokers_do_not_allow_is_said(
    models: dict[str, Path], tmp_path: Path, unique: Callable[[str], str]
) -> None:
    with (
        Broker(properties={"group.min.session.timeout.ms": "6000"}) as strict,
        Stage(strict, models["sasrec"], tmp_path, unique) as stage,
    ):
        worker = stage.worker("--session-timeout-s", "5", ready=False)
        assert worker.process.wait(30) == 2, worker.log.read_text()
        assert "--session-timeout-s 5: the brokers do not allow it" in worker.log.read_text().splitlines()[-1]


@pytest.mark.parametrize("client", CLIENTS)
def test_a_broker_that_is_away_costs_readiness_and_nothing_else(
    own_broker: Broker, models: dict[str, Path], tmp_path: Path, unique: Callable[[str], str], client: str, seed: int
) -> None:
    with Stage(own_broker, models["sasrec"], tmp_path, unique, client) as stage:
        worker = stage.worker()
        stage.send(some_events(seed, 500))
        wait_for("all lists", stage.covered)
        stage.close_producer()
        own_broker.kill()
        wait_for("not ready", lambda: worker.get("/readyz")[0] == 503)
        assert worker.metric("ready") == 0, "the metric that an alert looks at"
        assert worker.get("/livez")[0] == 200
        own_broker.start()
        stage.send(some_events(seed + 1, 500))
        worker.wait_ready()
        wait_for("all lists", stage.covered)
        assert worker.process.poll() is None


def test_rejects_go_to_their_topic_and_stop_nothing(stage: Stage) -> None:
    worker = stage.worker()
    for value in (b"{", b'{"user": "other", "item": "i1"}', b'{"user": "u1"}'):
        stage.send_raw(value, b"u1")
    stage.send([("u1", "i1")])
    rejects = wait_for("rejects", lambda: len(found := stage.records("rejected_topic")) == 3 and found)
    reasons = {dict(record.headers)["__connect.errors.exception.class.name"] for record in rejects}
    assert reasons == {b"not_json", b"key_not_user", b"missing_field"}
    assert {record.value for record in rejects} == {b"{", b'{"user": "other", "item": "i1"}', b'{"user": "u1"}'}
    wait_for("the list", lambda: set(stage.lists()) == {"u1"})
    assert worker.metric("rejected_total") == 3


def run(*arguments: str) -> tuple[int, str]:
    """Exit code and stderr of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "stream_worker", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stderr


def test_mistakes_are_one_line_with_their_exit_code(stage: Stage, tmp_path: Path, models: dict[str, Path]) -> None:
    bundle = ["--bundle", str(models["sasrec"])]
    kafka = ["--bootstrap", stage.broker.bootstrap, "--http-port", "0"]
    cases = [
        (["walk"], 2, "no command 'walk'"),
        (["run"], 2, "--bundle (STREAM_WORKER_BUNDLE) is required"),
        (["run", "--bundle", str(tmp_path)], 3, "no manifest.json and no current.json"),
        (["run", *bundle, "--device", "cuda"], 3, "device cuda:"),
        (["run", *bundle, *kafka, "--events-topic", "nowhere"], 4, "stream-worker topics --create"),
        (["run", *bundle, *kafka, *stage.flags, "--rejected-topic", "nowhere"], 4, "nowhere: missing"),
        (["topics", "--bootstrap", stage.broker.bootstrap, "--events-topic", "nowhere"], 4, "not as required"),
        (["replay", *bundle, "--events", str(tmp_path / "none"), "--out", str(tmp_path / "out")], 4, "No such file"),
    ]
    for arguments, code, message in cases:
        found, stderr = run(*arguments)
        last = stderr.strip().splitlines()[-1]
        assert (found, message in last) == (code, True), (arguments, found, stderr)
        assert "Traceback" not in stderr
