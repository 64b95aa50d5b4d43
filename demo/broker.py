"""One real Apache Kafka node for the demo, the tests and the benchmarks: start, stop, kill, pause.

The jars come from Maven (`scripts/install`); no container engine is needed. In the foreground:
`python -m demo.broker --port 9092 --data .demo/kafka`.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Self

from stream_worker.errors import SettingsError, StreamWorkerError, TransportError

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "kafka"
CONFIG = ROOT / "scripts" / "kafka"
HOST = "127.0.0.1"
SCRAM = ("SCRAM-SHA-256", "SCRAM-SHA-512")
CLUSTER_ID = "c3RyZWFtLXdvcmtlci1kZQ"  # any base64 of 16 bytes


def free_port() -> int:
    """A free TCP port below the kernel's ephemeral range.

    Not bind(0): while a broker is down, a client that keeps calling an ephemeral port can be given that very
    port as its own source and so connect to itself; the broker then finds its port taken.
    """
    for _ in range(1000):
        port = random.randrange(15_000, 32_000)  # noqa: S311
        if not port_in_use(port):
            return port
    raise SettingsError("no free TCP port between 15000 and 32000 on this machine: stop what holds them")


def port_in_use(port: int) -> bool:
    """Whether something listens on `port` of the loopback address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the broker: TIME_WAIT is no listener
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False


@dataclass(frozen=True)
class Door:
    """A listener with TLS, SASL and Kafka's authorizer.

    Attributes:
        keystore: a private key and its certificate, PEM in one file.
        users: passwords by name; PLAIN and SCRAM know them all. None has any permission before it is granted.
        client_ca: certificates that clients' must come from, if they show one.
    """

    keystore: Path
    users: Mapping[str, str]
    client_ca: Path
    port: int = field(default_factory=free_port)

    def properties(self) -> dict[str, str]:
        """Kafka's settings."""
        plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        users = " ".join(f'user_{name}="{password}"' for name, password in self.users.items())
        own = {
            "sasl.enabled.mechanisms": ",".join(("PLAIN", *SCRAM)),
            "plain.sasl.jaas.config": f"{plain} {users};",
            **{f"{name.lower()}.sasl.jaas.config": scram for name in SCRAM},
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": self.keystore.as_posix(),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self.client_ca.as_posix(),
            "ssl.client.auth": "requested",
        }
        return {
            "listeners": f"PLAINTEXT://{{host}}:{{port}},CONTROLLER://{{host}}:{{controller_port}},"
            f"SECURE://{{host}}:{self.port}",
            "advertised.listeners": f"PLAINTEXT://{{host}}:{{port}},SECURE://{{host}}:{self.port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL",
            "inter.broker.listener.name": "PLAINTEXT",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            **{f"listener.name.secure.{name}": value for name, value in own.items()},
        }

    def format_options(self) -> list[str]:
        """Of the storage tool: SCRAM's users are part of the log."""
        return [
            option
            for mechanism in SCRAM
            for name, password in self.users.items()
            for option in ("--add-scram", f"{mechanism}=[name={name},password={password}]")
        ]


class Broker:
    """One KRaft node; `with Broker() as broker:` starts it and cleans up after it."""

    def __init__(
        self,
        data: Path | None = None,
        port: int | None = None,
        jvm_options: list[str] | None = None,
        properties: dict[str, str] | None = None,
        door: "Door | None" = None,
    ) -> None:
        """Choose folder and ports; nothing is started.

        Without `data`, a temporary folder; with it, the folder is kept, and a later Broker on it finds its
        topics again. After `kill` or `stop`, `start` brings this one back on the same ports and data.
        `properties` are further settings of Kafka's, which win over the template's. `door` is a second way in, with
        TLS, passwords and ACLs; who comes in by the first may do everything.
        """
        self._temporary = data is None
        folder = data or Path(tempfile.gettempdir()) / f"stream-worker-kafka-{uuid.uuid4().hex}"
        self.data = folder.resolve()
        self.port = port or free_port()
        self._controller_port = 0
        self._jvm_options = jvm_options
        self._properties = properties or {}
        self._door = door
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        """The address for `--bootstrap`."""
        return f"{HOST}:{self.port}"

    @property
    def secure_bootstrap(self) -> str:
        """The address of the second way in."""
        assert self._door is not None, "it has none"
        return f"{HOST}:{self._door.port}"

    def follower(self, number: int) -> "Broker":
        """One more broker of the same cluster, while this one, which decides for all, runs."""
        assert self.pid, "start this one first"
        properties = {
            "process.roles": "broker",
            "node.id": str(number),
            "listeners": "PLAINTEXT://{host}:{port}",
            "controller.quorum.voters": f"1@{HOST}:{self._controller_port}",
        }
        return Broker(properties=self._properties | properties)

    @property
    def log(self) -> Path:
        """What the broker wrote; every start appends."""
        return self.data / "broker.log"

    @property
    def pid(self) -> int | None:
        """The broker's process while it runs (paused included), else None."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def __enter__(self) -> Self:
        """Start; a start that fails leaves nothing behind."""
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop and clean up."""
        self.close()

    def close(self) -> None:
        """Stop; a node in a temporary folder is killed, and the folder removed."""
        if self._temporary:
            self.kill()  # there is nothing to save, and an orderly end can take 20 s
            shutil.rmtree(self.data, ignore_errors=True)
        else:
            self.stop()

    def start(self, timeout_s: float = 30) -> None:
        """Format the folder if it is new, run, and return once clients are served: 1 to 4 s.

        SettingsError: the port is in use, or java or the jars are missing. TransportError: it did not
        come up; the message ends with the log's tail.
        """
        if self.pid:
            return
        deadline = time.monotonic() + timeout_s
        if port_in_use(self.port):
            raise SettingsError(
                f"port {self.port} is in use on {HOST}: stop what listens there, or choose another port"
            )
        java = _java()
        self._controller_port = self._controller_port or free_port()
        config = self._write_config()
        with self.log.open("ab") as log:
            log_start = log.tell()
            if not (self.data / "log" / "meta.properties").exists():
                self._format(java, config, log, deadline)
            self._process = subprocess.Popen(
                [*with_parent_death_signal(), *java, *self._options(), "kafka.Kafka", str(config)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,  # Ctrl-C is ours: the broker stops last, not with everybody else
            )  # fmt: skip
        try:
            self._await_ready(deadline, timeout_s, log_start)
        except BaseException:
            self.kill()
            raise

    def stop(self, timeout_s: float = 20) -> None:
        """Orderly: SIGTERM, then SIGKILL at the deadline. Does nothing if it is not running."""
        if self._process is None or not self.pid:
            return
        self.resume()  # a paused process does not see SIGTERM
        self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL, as a machine that dies; returns when the process is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers, as behind a broken network."""
        if self._process is not None and self.pid:
            self._process.send_signal(signal.SIGSTOP)
            # Its threads stop one by one, and may still answer after `kill` has returned.
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """SIGCONT, after `pause`."""
        if self._process is not None and self.pid:
            self._process.send_signal(signal.SIGCONT)

    def _write_config(self) -> Path:
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        config = self.data / "server.properties"
        template = (CONFIG / "server.properties").read_text()
        ports = {"port": self.port, "controller_port": self._controller_port}
        properties = (self._door.properties() if self._door else {}) | self._properties
        template += "".join(f"{name}={value}\n" for name, value in properties.items())
        config.write_text(template.format(host=HOST, data=self.data.as_posix(), **ports))
        return config

    def _format(self, java: list[str], config: Path, log: IO[bytes], deadline: float) -> None:
        command = [*java, *self._options(), "kafka.tools.StorageTool"]
        command += ["format", "--cluster-id", CLUSTER_ID, "--config", str(config)]
        command += self._door.format_options() if self._door else []
        log_start = log.tell()
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False,
                timeout=max(1.0, deadline - time.monotonic()),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise TransportError(f"formatting {self.data} took too long\n{self._tail(log_start)}") from None
        if done.returncode:
            raise TransportError(f"Kafka could not format {self.data}\n{self._tail(log_start)}")

    def _options(self) -> list[str]:
        folder = f"-Djava.io.tmpdir={self.data}"  # a killed JVM leaves its native libraries there
        if self._jvm_options is not None:
            return [folder, *self._jvm_options]
        archive = _archive()
        if not archive.exists():
            return [folder]
        # A stale archive is ignored by the JVM, not an error: only the start is slower.
        return [folder, f"-XX:SharedArchiveFile={archive}", "-Xlog:cds=off", "-Xlog:class+path=off"]

    def _await_ready(self, deadline: float, timeout_s: float, log_start: int) -> None:
        """Until the broker names itself in its metadata: the port alone opens before it takes requests."""
        while True:
            if self._process is None or self._process.poll() is not None:
                raise TransportError(f"Kafka stopped while starting\n{self._tail(log_start)}")
            if port_in_use(self.port) and _serves(self.bootstrap):
                return
            if time.monotonic() > deadline:
                raise TransportError(f"Kafka did not answer in {timeout_s:.0f} s\n{self._tail(log_start)}")
            time.sleep(0.02)

    def _tail(self, log_start: int, lines: int = 15) -> str:
        with self.log.open("rb") as log:
            log.seek(log_start)
            text = log.read().decode(errors="replace").splitlines()
        text = [line for line in text if not line.startswith("\tat ")]  # causes, not stacks
        return "\n".join([f"the end of {self.log}:", *text[-lines:]])


def _serves(bootstrap: str) -> bool:
    # Not at the top: demo/preflight.py asks this file for ports before there is an environment.
    from kafka import KafkaAdminClient
    from kafka.errors import KafkaError

    try:
        client = KafkaAdminClient(bootstrap_servers=bootstrap, bootstrap_timeout_ms=500, request_timeout_ms=1000)
    except KafkaError:
        return False
    try:
        return bool(client.describe_cluster()["brokers"])
    except KafkaError:
        return False
    finally:
        client.close()


def _java() -> list[str]:
    """The command line up to the JVM's own options; SettingsError says what is missing."""
    java = shutil.which("java")
    jars = sorted((CACHE / "lib").glob("*.jar"))
    if java is None:
        raise SettingsError("java is not on PATH: install Java 17 or newer (Debian: openjdk-17-jre-headless)")
    if not jars:
        raise SettingsError("Kafka's jars are not in .cache/kafka/lib: run scripts/install")
    return [
        java, "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto",
        f"-Dlog4j2.configurationFile={CONFIG / 'log4j2.properties'}",
        # Sorted, not `lib/*`: a class-data archive is valid for one order of the jars only.
        "-cp", os.pathsep.join(map(str, jars)),
    ]  # fmt: skip


def _archive() -> Path:
    """Where the JVM's class-data archive lies: one per Java and set of jars; it halves the start."""
    java = Path(shutil.which("java") or "java").resolve()
    key = f"{java} {java.stat().st_mtime_ns} {CACHE}\n{(CONFIG / 'sha256sums').read_text()}"
    return CACHE / f"classes-{hashlib.sha256(key.encode()).hexdigest()[:12]}.jsa"


def make_archive() -> None:
    """Run a broker once and keep its loaded classes for quick starts; `scripts/install` does this."""
    archive = _archive()
    if archive.exists():
        return
    print("kafka: preparing a quick start", flush=True)
    for stale in CACHE.glob("classes-*.jsa"):
        stale.unlink()
    fresh = archive.with_suffix(f".{os.getpid()}")
    with Broker(jvm_options=[f"-XX:ArchiveClassesAtExit={fresh}", "-Xlog:cds=off", "-Xlog:cds+dynamic=off"]):
        pass
    fresh.replace(archive)


def with_parent_death_signal(name: str = "KILL") -> list[str]:
    """A prefix to a command which makes the kernel send it that signal when we end, even by a kill -9 of ours.

    Only from the main thread: the signal comes at the end of the *thread* that started the process.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None or threading.current_thread() is not threading.main_thread():
        return []
    return [setpriv, "--pdeathsig", name]


def main() -> int:
    """Run in the foreground until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m demo.broker", description=__doc__)
    parser.add_argument("--port", type=int, default=9092, help="the port for clients (9092)")
    parser.add_argument("--data", type=Path, default=ROOT / ".demo" / "kafka", help="kept folder (.demo/kafka)")
    parser.add_argument("--make-archive", action="store_true", help="make the class-data archive and exit")
    args = parser.parse_args()
    asked_to_stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked_to_stop.set())
    try:
        if args.make_archive:
            make_archive()
            return 0
        with Broker(args.data, args.port) as broker:
            print(f"Kafka serves {broker.bootstrap}; log: {broker.log}; Ctrl-C stops it", flush=True)
            while not asked_to_stop.wait(0.5):
                if broker.pid is None:
                    raise TransportError(f"Kafka stopped by itself; see {broker.log}")
    except StreamWorkerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
