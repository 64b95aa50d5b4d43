"""For applications: the newest list of each user, followed on the recommendations topic.

    from stream_worker.reader import Recommendations

    with Recommendations("kafka:9092") as lists:
        lists.wait_caught_up(60)
        top = lists.latest("u17")
        for update in lists:  # for ever
            print(update.user, update.top)

It imports the Kafka client and no model runtime. Nothing runs by itself: `poll`, `wait_caught_up` and the iteration
read; `latest` looks at what they have read, and may be called from other threads meanwhile.
"""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import msgspec
import structlog
import xxhash
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from stream_worker.connection import for_kafka_python
from stream_worker.entrance import knock, made
from stream_worker.errors import DataError, SettingsError, TransportError
from stream_worker.messages import SCHEMA, TopK, decode_list

if TYPE_CHECKING:
    from stream_worker.settings import KafkaSettings

log = structlog.get_logger(__name__)

ERASED_REMEMBERED = 100_000
POLL_S = 0.5
CONNECT_TIMEOUT_MS = 10_000
MAX_RECORDS = 2000

Age = tuple[int, int]  # epoch, offset: of two lists the newer has the larger


class Update(NamedTuple):
    """A list that is newer than all before it, or None: the user's list was erased."""

    user: str
    top: TopK | None


class Newest:
    """The newest list of each user, whatever is repeated or comes late. Knows nothing of Kafka.

    A list counts unless its (epoch, offset) is smaller than that of the list before it. A tombstone has none: it
    erases what came before it. A user who comes back comes with a later event, so after a tombstone only a list of a
    larger (epoch, offset) than the erased one's counts: a repeat of the erased one, or of one before it, does not
    bring the user back. For that the (epoch, offset) of the last 100,000 erased lists is kept, under a hash of the
    user.
    """

    def __init__(self) -> None:
        self._lists: dict[str, tuple[Age, bytes]] = {}  # as received: a decoded list takes four times the memory
        self._erased: dict[int, Age] = {}  # the newest last

    def __len__(self) -> int:
        """Users with a list."""
        return len(self._lists)

    def __contains__(self, user: str) -> bool:
        """Whether this user has a list."""
        return user in self._lists

    def __getitem__(self, user: str) -> TopK:
        """The newest list of a user.

        Raises:
            KeyError: there is none.
        """
        return decode_list(self._lists[user][1])

    def take(self, user: str, value: bytes | None) -> Update | None:
        """The next record: what it changes, or None if it is old.

        Raises:
            ValueError: the value is not a list, or of another schema.
        """
        if value is None:
            return self._erase(user)
        top = decode_list(value)
        if top.schema != SCHEMA:
            raise ValueError(f"schema {top.schema}, not {SCHEMA}")
        age = top.epoch, top.offset
        held, grave = self._lists.get(user), _hash(user)
        if held is not None and (age < held[0] or value == held[1]):
            return None
        if held is None and grave in self._erased and age <= self._erased[grave]:
            return None
        self._erased.pop(grave, None)
        self._lists[user] = age, value
        return Update(user, top)

    def _erase(self, user: str) -> Update | None:
        held = self._lists.pop(user, None)
        if held is None:
            return None
        if len(self._erased) == ERASED_REMEMBERED:
            del self._erased[next(iter(self._erased))]
        self._erased[_hash(user)] = held[0]
        return Update(user, None)


class Recommendations:
    """Follows the recommendations topic from its beginning, without a consumer group: every reader sees every list.

    Memory: the newest list of every user, as bytes: the size of the record (1 KB with 20 items) and 400 bytes more.

    Args:
        bootstrap: Kafka brokers, host:port, comma-separated.
        topic: the recommendations topic. Its partitions must stay as many as they are: a list in a new partition
            would have no order with the tombstones in an old one.
        options: further settings of `kafka.KafkaConsumer`.
    """

    def __init__(self, bootstrap: str = "localhost:9092", topic: str = "recommendations", **options: Any) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._options = options
        self._settings: KafkaSettings | None = None
        self._newest = Newest()
        self._consumer: KafkaConsumer | None = None

    @classmethod
    def from_settings(cls, settings: "KafkaSettings", **options: Any) -> Self:
        """As a worker reaches the brokers: `KafkaSettings()` takes the address, the topic, TLS and SASL from the
        same environment variables.
        """
        lists = cls(settings.bootstrap, settings.recommendations_topic, **options)
        lists._settings = settings
        return lists

    def __enter__(self) -> Self:
        """Connect.

        Raises:
            TransportError: the broker does not answer.
            SettingsError: it does not let us in.
            DataError: there is no such topic, or we may not read it.
        """
        connection = {"bootstrap_servers": self._bootstrap.split(",")}
        if self._settings is not None:
            knock(self._settings)
            connection = for_kafka_python(self._settings)
        try:
            consumer = made(
                KafkaConsumer,
                {
                    **connection,
                    "bootstrap_timeout_ms": CONNECT_TIMEOUT_MS,
                    "group_id": None,
                    "enable_auto_commit": False,
                    "auto_offset_reset": "earliest",
                    "allow_auto_create_topics": False,
                    "reconnect_backoff_max_ms": 1000,
                    "max_poll_records": MAX_RECORDS,
                    **self._options,
                },
            )
        except KafkaError as error:
            raise TransportError(f"broker {self._bootstrap}: {error}. Is it running, and the address right?") from error
        partitions = [TopicPartition(self._topic, number) for number in consumer.partitions_for_topic(self._topic)]
        if not partitions:
            consumer.close()
            raise DataError(f"broker {self._bootstrap}: there is no topic {self._topic!r} that we may see.")
        consumer.assign(partitions)
        self._consumer = consumer
        return self

    def __exit__(self, *_: object) -> None:
        """Disconnect; what was read stays."""
        if self._consumer is not None:
            self._consumer.close()
        self._consumer = None

    def latest(self, user: str) -> TopK | None:
        """The newest list of a user among those read, or None."""
        try:
            return self._newest[user]
        except KeyError:
            return None

    def __len__(self) -> int:
        """Users with a list."""
        return len(self._newest)

    def __contains__(self, user: str) -> bool:
        """Whether a list of this user has been read, and not been erased."""
        return user in self._newest

    def __iter__(self) -> Iterator[Update]:
        """New lists and erasures as they come, for ever. A broker that is away brings none, until it is back."""
        while True:
            yield from self.poll(POLL_S)

    def poll(self, timeout_s: float = 0) -> list[Update]:
        """Read on: new lists and erasures, in order. Waits at most `timeout_s` for the first.

        Raises:
            DataError: a record is not a list of this schema; the reader is older than the worker. All others of the
                same poll have been read, and `latest` knows them.
        """
        try:
            batches = self._open_consumer.poll(timeout_ms=int(timeout_s * 1000))
        except KafkaError as error:
            if not error.retriable:
                raise DataError(f"topic {self._topic!r}: {type(error).__name__}: {error}") from error
            log.warning("lists cannot be read, trying again", topic=self._topic, error=str(error))
            return []
        updates = []
        foreign: DataError | None = None
        for partition, records in batches.items():
            for record in records:
                try:
                    update = self._newest.take(record.key.decode(), record.value)
                except (ValueError, AttributeError, msgspec.DecodeError) as error:
                    foreign = DataError(
                        f"{self._topic}-{partition.partition}@{record.offset}: not a list that this version reads: "
                        f"{error}. Does something else write to the topic, or is the worker newer than this reader?"
                    )
                    continue
                if update is not None:
                    updates.append(update)
        if foreign is not None:
            raise foreign
        return updates

    def wait_caught_up(self, timeout_s: float = 60) -> None:
        """Read until everything is read that was in the topic when this was called; `latest` then knows it.

        Raises:
            TransportError: it took longer; what was read is kept, and the call may be repeated.
        """
        deadline = time.monotonic() + timeout_s
        consumer = self._open_consumer
        try:
            ends = consumer.end_offsets(list(consumer.assignment()), timeout_ms=int(timeout_s * 1000))
            # None if the client does not know it in time.
            while any((consumer.position(partition, timeout_ms=1000) or 0) < end for partition, end in ends.items()):
                if time.monotonic() > deadline:
                    raise TransportError(
                        f"topic {self._topic!r}: not read to its end in {timeout_s:g} s ({len(self):,} users so far)"
                    )
                self.poll(POLL_S)
        except KafkaError as error:
            raise TransportError(f"broker {self._bootstrap}: {error}. Is it running, and the address right?") from error
        except KeyError as error:  # the client's way to say that it has no leader
            raise TransportError(f"topic {self._topic!r}: partition {error} has no leader at the moment.") from error

    @property
    def _open_consumer(self) -> KafkaConsumer:
        if self._consumer is None:
            raise SettingsError(
                "Recommendations is a context manager: `with Recommendations(…) as lists:` comes first."
            )
        return self._consumer


def _hash(user: str) -> int:
    return xxhash.xxh3_64_intdigest(user.encode())
