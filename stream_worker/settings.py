"""Every knob, once: a field here is a flag, an environment variable, a line of `--help` and a row of docs/settings.md.

`history_length` is `--history-length` and `STREAM_WORKER_HISTORY_LENGTH`; a flag wins over the environment.
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import DirectoryPath, Field, FilePath, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict
from pydantic_settings import SettingsError as ParseError

from stream_worker.errors import SettingsError

PREFIX = "STREAM_WORKER_"
EXCLUDING = "purchase,dislike,hide"  # actions whose item is not recommended to the user again

S = TypeVar("S", bound=BaseSettings)


class KafkaSettings(BaseSettings):
    """How to reach Kafka, and the names there."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_exit_on_error=False,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    bootstrap: str = Field("localhost:9092", description="Kafka brokers, host:port, comma-separated.")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="SSL: encrypted; SASL: with a username and password."
    )
    tls_ca_file: FilePath | None = Field(
        None, description="Certificates (PEM) that the brokers' must come from; default the system's."
    )
    tls_cert_file: FilePath | None = Field(None, description="Our own certificate (PEM), where brokers ask for one.")
    tls_key_file: FilePath | None = Field(None, description="Its private key (PEM), not encrypted.")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="How the password is shown to the broker."
    )
    sasl_username: str | None = Field(None, min_length=1, description="Who we are to the brokers.")
    sasl_password: SecretStr | None = Field(
        None, min_length=1, description="The password; from the environment alone, a flag is refused."
    )
    sasl_password_file: FilePath | None = Field(
        None, description="File that holds the password and nothing else, such as a mounted secret."
    )
    events_topic: str = Field("events", description="Topic of clicks and views, keyed by user.")
    recommendations_topic: str = Field("recommendations", description="Topic of the lists, keyed by user, compacted.")
    state_topic: str = Field(
        "stream-worker-state", description="Topic of the users' states, compacted; as many partitions as the events'."
    )
    rejected_topic: str = Field("events.rejected", description="Topic of events that are not well formed.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["auto", "json", "pretty"] = Field(
        "auto", description="auto: pretty on a terminal, JSON lines elsewhere."
    )

    @field_validator("bootstrap")
    @classmethod
    def _hosts_and_ports(cls, value: str) -> str:
        if not all(re.fullmatch(r"\S+:\d{1,5}", address) for address in value.split(",")):
            raise ValueError("it should be host:port, or several, comma-separated")
        return value

    @model_validator(mode="after")
    def _secrets_have_a_use(self) -> Self:
        tls, sasl = self.security_protocol.endswith("SSL"), self.security_protocol.startswith("SASL")
        if not tls and (self.tls_ca_file or self.tls_cert_file or self.tls_key_file):
            raise ValueError(f"a tls_… file is set, but security_protocol is {self.security_protocol}: nothing uses it")
        if bool(self.tls_cert_file) != bool(self.tls_key_file):
            raise ValueError("tls_cert_file and tls_key_file go together")
        if not sasl and (self.sasl_username or self.sasl_password or self.sasl_password_file):
            raise ValueError(f"a sasl_… is set, but security_protocol is {self.security_protocol}: nothing uses it")
        if sasl and not self.sasl_username:
            raise ValueError(f"security_protocol {self.security_protocol} needs sasl_username")
        if sasl and bool(self.sasl_password) == bool(self.sasl_password_file):
            raise ValueError(
                f"security_protocol {self.security_protocol} needs the password in {PREFIX}SASL_PASSWORD, or "
                "sasl_password_file, and not both"
            )
        return self

    @property
    def password(self) -> str:
        """The password, read anew: a secret that is mounted may have changed.

        Raises:
            SettingsError: the file cannot be read, or is empty.
        """
        if self.sasl_password is not None:
            return self.sasl_password.get_secret_value()
        assert self.sasl_password_file is not None, "validated"
        try:
            found = self.sasl_password_file.read_text().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"--sasl-password-file {self.sasl_password_file}: {error}.") from error
        if not found:
            raise SettingsError(f"--sasl-password-file {self.sasl_password_file}: is empty.")
        return found


class EventSettings(KafkaSettings):
    """Who consumes the events, and how they look."""

    group: str = Field("stream-worker", min_length=1, description="Consumer group; its workers share the partitions.")

    event_user_field: str = Field("user", description="Path of the user in an event, such as properties.user_id.")
    event_item_field: str = Field("item", description="Path of the item in an event.")
    event_action_field: str = Field("action", description="Path of the action in an event.")
    event_time_field: str = Field("time", description="Path of the time in an event.")
    event_decoder: str | None = Field(
        None,
        description="package.module:function from a record's bytes to such a dict, for events that are not JSON.",
    )
    max_future_s: float = Field(300, ge=0, description="An event this far ahead of its Kafka timestamp is rejected.")


class StateSettings(EventSettings):
    """What is kept of a user."""

    history_length: int = Field(64, ge=1, le=4096, description="Newest events kept of each user (H).")
    excluded_length: int = Field(32, ge=0, le=4096, description="Newest items kept of excluding actions, per user (E).")
    excluding_actions: str = Field(
        EXCLUDING,
        description="Actions whose items are kept apart as excluded, comma-separated.",
    )
    max_users_per_partition: int = Field(
        1_000_000, ge=1, description="Most users of a partition; for one more the longest silent one is forgotten."
    )
    user_ttl_s: float | None = Field(
        None, ge=60, description="Users without an event for so long are forgotten, and their lists; default never."
    )

    @property
    def excluding(self) -> frozenset[str]:
        """`excluding_actions` as a set."""
        return names_of(self.excluding_actions)


class Settings(StateSettings):
    """Consume events, publish fresh lists."""

    bundle: Path = Field(description="A bundle, or a directory of bundles with a current.json.")
    client: Literal["kafka-python", "librdkafka"] = Field(
        "kafka-python", description="Kafka client library; librdkafka costs less, and comes with the extra of its name."
    )
    group_instance_id: str | None = Field(
        None, description="Static membership: a name that survives a restart, such as the pod's."
    )
    first_start: Literal["earliest", "latest"] = Field(
        "earliest", description="Where a partition without a state begins: the oldest event retained, or the next one."
    )
    on_lost_events: Literal["refuse", "skip"] = Field(
        "refuse",
        description="When events were deleted by retention before they were folded: stop, or count them and go on.",
    )

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="cuda never falls back to the CPU; auto says in the log which one it took."
    )
    threads: int = Field(
        1, ge=1, le=64, description="Threads of one inference on the CPU; more workers beat more threads."
    )
    batch_users: int | None = Field(
        None,
        ge=1,
        le=256,
        description="Most users of one inference. Default: as a worker measures when it starts; 32 in replay.",
    )
    cuda_graphs: bool = Field(
        False, description="On CUDA: record the kernels of each shape of a batch once, and replay them (not yet run)."
    )
    list_length: int | None = Field(None, ge=1, description="Items in a list; default and most are the bundle's K.")
    exclude_seen: bool | None = Field(
        None,
        description="Leave the items of the user's history out of the list. Default: what the bundle says.",
    )
    vector_cache_users: int | None = Field(
        None,
        ge=1,
        le=100_000_000,
        description="Users of a worker whose vector is kept, where the model keeps one; that of others is made anew "
        "from the history. Default: as many as fit into 256 MiB.",
    )
    vector_cache_precision: Literal["float32", "float16"] = Field(
        "float32",
        description="Of keys and values at rest; float16 keeps twice the users, and moves scores a little.",
    )
    variant: str = Field("a", min_length=1, max_length=64, description="Name of this deployment in lists and metrics.")

    max_poll_records: int = Field(
        2000, ge=1, le=100_000, description="Most records of one poll; under load, more of them share a list."
    )
    poll_timeout_s: float = Field(
        0.5, gt=0, le=1, description="Longest wait of one poll when there is nothing to do; an event ends it."
    )
    checkpoint_interval_s: float = Field(
        1, gt=0, le=3600, description="Time between two checkpoints: what a crash makes a worker fold again."
    )
    max_dirty_users: int = Field(
        10_000, ge=1, description="Changed users at which a checkpoint does not wait for its time."
    )
    max_reject_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Of the last 10,000 events: with more of them rejected, the worker stops; 1 never stops it.",
    )
    session_timeout_s: float = Field(10, ge=1, le=300, description="A silent worker loses its partitions after this.")
    delivery_timeout_s: float = Field(
        6, gt=0, description="A list unacknowledged for so long is made anew; below session_timeout_s."
    )
    stale_after_s: float = Field(
        10,
        gt=0,
        description="A partition that is further behind, with over 1,000 records waiting, is catching up.",
    )
    max_in_flight: int = Field(5000, ge=1, description="Unacknowledged records; at this number inference waits.")
    drain_timeout_s: float = Field(8, gt=0, le=300, description="After SIGTERM: time to publish what is folded.")

    http_host: str = Field("0.0.0.0", description="Address of /metrics, /livez and /readyz.")  # noqa: S104
    http_port: int = Field(8080, ge=0, le=65535, description="Port of these; 0 takes a free one and logs it.")

    @model_validator(mode="after")
    def _delivery_within_session(self) -> Self:
        if self.delivery_timeout_s >= self.session_timeout_s:
            raise ValueError(
                f"delivery_timeout_s ({self.delivery_timeout_s:g}) must be below session_timeout_s "
                f"({self.session_timeout_s:g}): a list must not arrive after the partition has moved on"
            )
        return self


class ReplaySettings(Settings):
    """Run a file of events through the same pipeline, without Kafka."""

    events: Path = Field(description="JSON lines, one event a line, in the order of the log.")
    out: Path = Field(description="JSON lines, one list a line; rejected events go to OUT.rejected.")


class TopicsSettings(KafkaSettings):
    """Check the topics, and with --create make those that are missing."""

    create: bool = Field(False, description="Create what is missing.")
    partitions: int = Field(4, ge=1, description="Partitions of topics that are created.")
    replication_factor: int = Field(1, ge=1, description="Replicas of topics that are created; 3 in production.")


class ForgetSettings(EventSettings):
    """Erase a user: state, lists, and whatever a replay would bring back. Prints the proof; exit 4 if there is none."""

    user: CliPositionalArg[str] = Field(description="The user's id, as in the events.")
    verify: bool = Field(False, description="Write nothing: read the topics from their beginning, and print the proof.")
    timeout_s: float = Field(60, gt=0, description="How long to wait for the workers to get there.")


class SeedSettings(StateSettings):
    """Fill a new state topic with histories: from the warehouse's files, or from another state topic."""

    events: list[str] = Field(
        [], description="Parquet files, directories or patterns, comma-separated: user, item, time, optionally action."
    )
    from_topic: str | None = Field(
        None, description="State topic to take over, for another events topic or another number of partitions."
    )
    until: str | None = Field(
        None,
        description="Where workers begin to read the events topic: partition:offset of each, such as 0:1200,1:900. "
        "The histories hold what came before. Default: the first event retained.",
    )
    lists: bool = Field(True, description="Every seeded user is owed a list, which the workers make when they start.")
    epoch: int | None = Field(
        None,
        ge=0,
        description="Lists of a higher one are newer. Default: 0 for files; for --from-topic one above its highest.",
    )
    spill_directory: DirectoryPath | None = Field(
        None, description="Where temporary files go, about 30 bytes an event; default the system's."
    )

    @field_validator("until")
    @classmethod
    def _partitions_and_offsets(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"\d+:\d+(,\d+:\d+)*", value):
            raise ValueError("it should be partition:offset, comma-separated, such as 0:1200,1:900")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.events) == bool(self.from_topic):
            raise ValueError("name either --events or --from-topic")
        return self

    @property
    def until_offsets(self) -> dict[int, int] | None:
        """`until` by partition."""
        if self.until is None:
            return None
        pairs = (pair.split(":") for pair in self.until.split(","))
        return {int(number): int(offset) for number, offset in pairs}


def names_of(text: str) -> frozenset[str]:
    """Names, comma-separated, as a set."""
    return frozenset(name.strip() for name in text.split(",") if name.strip())


def parse_arguments(cls: type[S], argv: Sequence[str], prog: str) -> S:
    """Settings from flags, then environment, then defaults. `--help` prints and exits 0.

    Raises:
        SettingsError: a flag or variable is unknown, absent or out of range; the message names each.
    """
    if any(re.match(r"--sasl[-_]password(=|$)", argument) for argument in argv):
        raise SettingsError(
            "--sasl-password: a password on the command line can be read by everybody on the machine. Set "
            f"{PREFIX}SASL_PASSWORD or --sasl-password-file."
        )
    try:
        return cls(_cli_parse_args=list(argv), _cli_prog_name=prog)
    except ParseError as error:
        raise SettingsError(f"{_parse_problem(error)} See `{prog} --help`.") from error
    except ValidationError as error:
        prefix = cls.model_config.get("env_prefix") or ""
        lines = "; ".join(
            _describe(problem["loc"], problem["msg"], problem["input"], prefix) for problem in error.errors()
        )
        raise SettingsError(f"{lines}. See `{prog} --help`.") from error


def refuse_unknown_variables(known: Iterable[type[BaseSettings]], prefix: str = PREFIX) -> None:
    """A misspelt variable must not be silently ignored.

    Raises:
        SettingsError: the environment holds a variable with our prefix that is no setting.
    """
    names = {prefix + name.upper() for cls in known for name in cls.model_fields}
    unknown = sorted(name for name in os.environ if name.startswith(prefix) and name not in names)
    if unknown:
        raise SettingsError(f"environment: {', '.join(unknown)}: no such setting. docs/settings.md lists them.")


def _parse_problem(error: ParseError) -> str:
    text = str(error).removeprefix("error parsing CLI: ").strip()
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _describe(loc: tuple[str | int, ...], message: str, value: object, prefix: str) -> str:
    message = message.removeprefix("Value error, ")
    if not loc:
        return message
    name = str(loc[0])
    flag = f"--{name.replace('_', '-')} ({prefix}{name.upper()})"
    if message == "Field required":
        return f"{flag} is required"
    shown = "" if "password" in name else f", not {value!r}"
    return f"{flag}: {message[:1].lower()}{message[1:]}{shown}"
