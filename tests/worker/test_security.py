"""TLS, passwords and permissions on a real broker with Kafka's own authorizer."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourceType,
)

from demo.broker import Broker, Door, free_port
from demo.certificates import Authority
from stream_worker.errors import DataError, SettingsError, StreamWorkerError, TransportError
from stream_worker.findings import Finding
from stream_worker.reader import Recommendations
from stream_worker.settings import EventSettings, KafkaSettings, Settings
from stream_worker.topics import inspect
from stream_worker.transports.kafka_doctor import examine_kafka
from tests import needs
from tests.conftest import start
from tests.manifests import environment, pods, with_secret_files
from tests.worker.process import CLIENTS, Stage, wait_for

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "correct-horse-battery-staple"
USERS = ("run", "forget", "seed", "creator", "reader", "nothing")  # what they may do is called like them, mostly
RESOURCES = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional id": ResourceType.TRANSACTIONAL_ID,
}


@dataclass
class Fortress:
    """The broker, and what it takes to be let in."""

    broker: Broker
    authority: Authority
    stranger: Authority
    password_file: Path
    expired_bootstrap: str

    def options(self, user: str = "run", **changes: Any) -> dict[str, Any]:
        """Settings of a user."""
        return {
            "bootstrap": self.broker.secure_bootstrap,
            "security_protocol": "SASL_SSL",
            "tls_ca_file": self.authority.ca,
            "sasl_username": user,
            "sasl_password_file": self.password_file,
            **changes,
        }

    def flags(self, user: str = "run", **changes: Any) -> list[str]:
        """The same as flags."""
        options = self.options(user, **changes).items()
        return [text for name, value in options for text in (f"--{name.replace('_', '-')}", str(value))]

    def grant(self, user: str, rows: list["Grant"], names: Mapping[str, str]) -> None:
        """What the rows of the table say, for topics and groups that are called otherwise."""
        acls = [row.acl(user, operation, names) for row in rows for operation in row.operations]
        admin = KafkaAdminClient(bootstrap_servers=self.broker.bootstrap)
        try:
            admin.create_acls(acls)
        finally:
            admin.close()


@dataclass(frozen=True)
class Grant:
    """A row of the table in docs/operations.md."""

    kind: str
    name: str
    operations: tuple[str, ...]

    def acl(self, user: str, operation: str, names: Mapping[str, str]) -> ACL:
        """For Kafka's authorizer."""
        name = self.name
        for default, own in names.items():
            name = re.sub(rf"(?<![\w.-]){re.escape(default)}(?=$|-\*)|(?<=^seed-){re.escape(default)}$", own, name)
        prefixed = name.endswith("*")
        pattern = ResourcePattern(
            RESOURCES[self.kind],
            name.removesuffix("*"),
            ACLResourcePatternType.PREFIXED if prefixed else ACLResourcePatternType.LITERAL,
        )
        return ACL(f"User:{user}", "*", ACLOperation[operation], ACLPermissionType.ALLOW, pattern)


def documented(command: str) -> list[Grant]:
    """What the docs say that a command needs."""
    text = (ROOT / "docs" / "operations.md").read_text()
    found = re.findall(
        rf"^\| `?{re.escape(command)}`? \| (topic|group|transactional id) `(\S+)` \| (.*) \|$", text, re.M
    )
    return [Grant(kind, name, tuple(operations.split(", "))) for kind, name, operations in found]


@pytest.fixture(scope="session")
def fortress(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fortress]:
    """A broker with two doors: one as it should be, one whose certificate has expired."""
    needs.command("openssl")
    folder = tmp_path_factory.mktemp("certificates")
    authority, stranger = Authority(folder / "ours"), Authority(folder / "strange", "nobody you know")
    door = Door(authority.issue("broker"), dict.fromkeys(USERS, PASSWORD), authority.ca)
    properties, port = door.properties(), free_port()
    for name in ("listeners", "advertised.listeners"):
        properties[name] += f",EXPIRED://{{host}}:{port}"
    properties["listener.security.protocol.map"] += ",EXPIRED:SSL"
    expired = {"type": "PEM", "location": authority.issue("expired", -1).as_posix()}
    properties |= {f"listener.name.expired.ssl.keystore.{name}": value for name, value in expired.items()}
    password_file = folder / "password"
    password_file.write_text(PASSWORD + "\n")
    broker = start(Broker(door=door, properties=properties))
    yield Fortress(broker, authority, stranger, password_file, f"127.0.0.1:{port}")
    broker.close()


@pytest.fixture
def stage(fortress: Fortress, models: dict[str, Path], tmp_path: Path, unique: Callable[[str], str]) -> Iterator[Stage]:
    """Topics of one's own; workers are to come in by the door."""
    with Stage(fortress.broker, models["popularity"], tmp_path, unique) as stage:
        stage.bootstrap = fortress.broker.secure_bootstrap
        yield stage


def names(stage: Stage) -> dict[str, str]:
    """What the docs call otherwise."""
    topics = stage.names
    return {
        "stream-worker-state": topics["state_topic"],
        "stream-worker": stage.group,
        "events.rejected": topics["rejected_topic"],
        "events": topics["events_topic"],
        "recommendations": topics["recommendations_topic"],
    }


def command(*arguments: str, password: str | None = None) -> tuple[int, str]:
    """Exit code and output."""
    environment = os.environ | ({} if password is None else {"STREAM_WORKER_SASL_PASSWORD": password})
    done = subprocess.run(
        [sys.executable, "-m", "stream_worker", *arguments], capture_output=True, text=True, timeout=120, check=False,
        env=environment,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("client", CLIENTS)
def test_a_worker_needs_what_the_docs_say_and_tells_nobody_its_password(
    fortress: Fortress, stage: Stage, client: str
) -> None:
    fortress.grant("run", documented("run"), names(stage))
    mechanism = {"kafka-python": "SCRAM-SHA-512", "librdkafka": "SCRAM-SHA-256"}[client]
    worker = stage.worker(
        *fortress.flags(sasl_mechanism=mechanism), "--client", client, "--log-level", "debug", "--log-format", "json"
    )
    stage.send([(f"u{number}", f"i{number}") for number in range(20)])
    wait_for("all lists", stage.covered)
    assert worker.terminate()[0] == 0
    log = worker.log.read_text()
    assert "sasl_password_file" in log
    assert PASSWORD not in log
    assert '"level": "warning"' not in re.sub(r".*no position on the changelog.*|.*device auto.*", "", log)


def test_the_settings_of_the_tls_example_let_a_worker_in(fortress: Fortress, stage: Stage, tmp_path: Path) -> None:
    """k8s/examples/tls as a pod gets it; but for the names of brokers, user and topics, which are ours."""
    needs.kubectl()
    (container,) = pods("examples/tls")["StatefulSet/stream-worker"]["spec"]["containers"]
    files = tmp_path / "stream-worker-files"
    files.mkdir()
    (files / "ca.pem").write_bytes(fortress.authority.ca.read_bytes())
    (files / "password").write_text(PASSWORD)
    stage.environment = with_secret_files(environment("examples/tls", container), files)
    assert {path.name for path in files.iterdir()} == {"ca.pem", "password"}
    fortress.grant("run", documented("run"), names(stage))
    stage.worker("--sasl-username", "run", "--session-timeout-s", "30")
    stage.send([("u1", "i1")])
    wait_for("a list", stage.covered)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_worker_without_its_transactional_id_ends_with_the_brokers_words(
    fortress: Fortress, stage: Stage, client: str
) -> None:
    fortress.grant("run", [one for one in documented("run") if one.kind != "transactional id"], names(stage))
    flags = ["--client", client, "--checkpoint-interval-s", "0.2"]
    worker = stage.worker(*fortress.flags(), *flags, ready=False)
    stage.send([("u1", "i1")])
    assert worker.process.wait(60) == 5
    last = worker.log.read_text().strip().splitlines()[-1].lower().replace("_", "").replace(" ", "")
    assert "transactionalid" in last
    assert "authorization" in last


@pytest.mark.parametrize("missing", documented("run")[:5], ids=lambda row: f"{row.kind} {row.name}")
def test_each_permission_that_is_missing_is_named(fortress: Fortress, stage: Stage, missing: Grant) -> None:
    rows = [one for one in documented("run") if one != missing]
    fortress.grant("run", rows, names(stage))
    topics: dict[str, Any] = stage.names
    settings = EventSettings(group=stage.group, **topics, **fortress.options())
    needed = [one for one in missing.operations if one != "DESCRIBE_CONFIGS"]
    wanted = ", ".join(f"{one} on {missing.kind} {names(stage)[missing.name]!r}" for one in needed)

    def said() -> bool:  # the authorizer learns of a grant a moment later
        with pytest.raises(DataError, match="lacks the permission") as caught:
            inspect(settings, stage.group)
        return f"'run' lacks the permission {wanted}. " in str(caught.value)

    wait_for(f"only {wanted}", said)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sasl_password": "wrong"}, SettingsError, "it refuses user 'run' with SCRAM-SHA-512"),
        ({"sasl_password": "wrong", "sasl_mechanism": "PLAIN"}, SettingsError, "it refuses user 'run' with PLAIN"),
        ({"sasl_username": "who"}, SettingsError, "it refuses user 'who'"),
        ({"tls_ca_file": "stranger"}, SettingsError, "certificate is not accepted: unable to get local issuer"),
        ({"tls_ca_file": None}, SettingsError, "--tls-ca-file"),
        ({"tls_ca_file": "password"}, SettingsError, "--tls-key-file: not usable"),
        ({"bootstrap": "expired"}, SettingsError, "certificate is not accepted: certificate has expired. Renew it"),
        ({"bootstrap": "plain"}, TransportError, "does this port speak SASL_SSL"),
    ],
    ids=str,
)
def test_who_is_not_let_in_is_told_why(
    fortress: Fortress, changes: dict[str, Any], error: type[StreamWorkerError], message: str
) -> None:
    meant = {
        "stranger": fortress.stranger.ca,
        "password": fortress.password_file,
        "expired": fortress.expired_bootstrap,
        "plain": fortress.broker.bootstrap,
    }
    changes = {name: meant.get(value, value) for name, value in changes.items()}
    if "sasl_password" in changes:
        changes["sasl_password_file"] = None
    with pytest.raises(error, match=re.escape(message)) as caught:
        inspect(KafkaSettings(**fortress.options(**changes)))
    assert "wrong" not in str(caught.value)


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_each_mechanism_gets_as_far_as_the_permissions(fortress: Fortress, mechanism: str) -> None:
    with pytest.raises(DataError, match="'nothing' lacks the permission READ on group 'g', READ on topic 'events'"):
        inspect(KafkaSettings(**fortress.options("nothing", sasl_mechanism=mechanism)), "g")


def test_a_certificate_of_ours_must_be_one_that_the_broker_accepts(fortress: Fortress) -> None:
    for authority, error, message in (
        (fortress.authority, DataError, "lacks the permission"),
        (fortress.stranger, SettingsError, "does not accept our certificate"),
    ):
        own = authority.issue("client")
        with pytest.raises(error, match=message):
            inspect(KafkaSettings(**fortress.options("nothing", tls_cert_file=own, tls_key_file=own)), "g")


@pytest.mark.parametrize("client", CLIENTS)
def test_a_worker_with_a_wrong_password_ends_at_once(fortress: Fortress, stage: Stage, client: str) -> None:
    flags = fortress.flags()
    del flags[-2:]
    arguments = ["run", "--bundle", str(stage.bundle), *flags, *stage.flags, "--client", client, "--http-port", "0"]
    code, output = command(*arguments, password="not this one")
    assert (code, "it refuses user 'run'" in output) == (2, True), output
    assert "not this one" not in output


def test_the_other_commands_need_what_the_docs_say(fortress: Fortress, stage: Stage, tmp_path: Path) -> None:
    import polars as pl

    fresh = {name: f"{topic}-2" for name, topic in stage.names.items()}
    every = [
        Grant(one.kind, topic, one.operations) for one in documented("topics --create") for topic in fresh.values()
    ]
    fortress.grant("creator", every, {})
    flags = [text for name, topic in fresh.items() for text in (f"--{name.replace('_', '-')}", topic)]

    def made() -> bool:
        return command("topics", "--create", *fortress.flags("creator"), *flags)[0] == 0

    wait_for("topics", made)

    called = {key: value if key == "stream-worker" else f"{value}-2" for key, value in names(stage).items()}
    for user in ("run", "seed", "forget", "reader"):
        fortress.grant(user, documented(user), called)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    pl.DataFrame({"user": ["u1", "u2"], "item": ["i1", "i2"], "time": [at, at]}).write_parquet(tmp_path / "e.parquet")
    group = ["--group", stage.group]
    code, output = command(
        "seed",
        "--events",
        str(tmp_path / "e.parquet"),
        *fortress.flags("seed"),
        *group,
        *flags,
        "--history-length",
        "64",
    )
    assert (code, "2 users" in output) == (0, True), output

    stage.flags = flags
    stage.worker(*fortress.flags())
    settings = KafkaSettings(recommendations_topic=fresh["recommendations_topic"], **fortress.options("reader"))
    with Recommendations.from_settings(settings) as lists:
        wait_for("two lists", lambda: (lists.poll(0.1), len(lists) == 2)[1])
        code, output = command("forget", "u1", *fortress.flags("forget"), *group, *flags)
        assert (code, "\nforgotten\n" in output) == (0, True), output
        wait_for("the tombstone", lambda: (lists.poll(0.1), "u1" not in lists)[1])


def test_the_doctor_says_what_is_not_granted_and_who_is_not_let_in(fortress: Fortress, stage: Stage) -> None:
    def visit(user: str, **changes: Any) -> dict[str, Finding]:
        topics: dict[str, Any] = stage.names
        options = fortress.options(user, **changes)
        settings = Settings(bundle=stage.bundle, group=stage.group, **topics, **options)
        return {finding.what: finding for finding in examine_kafka(settings)[1]}

    rows = documented("run")
    fortress.grant("run", [one for one in rows if one.kind != "transactional id"], names(stage))

    def let_in() -> bool:  # the authorizer learns of a grant a moment later
        return visit("run")["permissions"].state == "fine"

    wait_for("permissions", let_in)
    found = visit("run")
    wrong = {what: finding for what, finding in found.items() if finding.state == "wrong"}
    assert wrong.keys() == {"transactions"}
    assert wrong["transactions"].exit_code == 4
    assert f"WRITE on transactional ids such as '{stage.group}-doctor'" in wrong["transactions"].text
    fortress.grant("run", [one for one in rows if one.kind == "transactional id"], names(stage))
    wait_for("all fine", lambda: {one.state for one in visit("run").values()} <= {"fine", "skipped"})

    nobody = visit("nothing")
    assert (nobody["permissions"].state, nobody["permissions"].exit_code) == ("wrong", 4)
    assert "'nothing' lacks the permission READ on group" in nobody["permissions"].text
    refused = visit("run", sasl_password_file=None, sasl_password="not this one")
    assert (refused["broker"].state, refused["broker"].exit_code) == ("wrong", 2)
    assert "not this one" not in str(refused)
