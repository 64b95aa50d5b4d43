"""The reader of lists: repeats, disorder, tombstones; on a real Kafka, without a model runtime."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import KafkaAdminClient, KafkaProducer

from demo.broker import Broker
from stream_worker import reader
from stream_worker.errors import DataError, SettingsError, TransportError
from stream_worker.messages import TopK, encode_list
from stream_worker.reader import Newest, Recommendations, Update


def a_list(user: str = "u", offset: int = 0, epoch: int = 0, events: int = 1, **fields: Any) -> TopK:
    return TopK(
        user=user, items=["i1"], scores=[1.0], model="m", variant="a", events=events, event_time=0, received_time=0,
        published_time=0, partition=0, offset=offset, epoch=epoch, **fields,
    )  # fmt: skip


Ages = st.tuples(st.integers(0, 2), st.integers(-5, 5))


@given(st.lists(Ages, min_size=1, max_size=30))
def test_the_newest_list_wins_in_any_order_and_of_equals_the_later_record(ages: list[tuple[int, int]]) -> None:
    newest = Newest()
    for number, (epoch, offset) in enumerate(ages):
        newest.take("u", encode_list(a_list(offset=offset, epoch=epoch, events=number)))
    expected = max(range(len(ages)), key=lambda number: (ages[number], number))
    assert newest["u"].events == expected


@given(st.lists(st.tuples(st.integers(1, 4), st.lists(st.integers(0, 100), max_size=4)), max_size=5))
def test_an_erased_user_comes_back_with_a_later_event_only(lives: list[tuple[int, list[int]]]) -> None:
    """A life: so many new lists, then repeats of any list of this life or of one before, then a tombstone."""
    newest, published = Newest(), 0
    for new, repeats in lives:
        for offset in range(published, published + new):
            update = newest.take("u", encode_list(a_list(offset=offset)))
            assert update is not None
            assert update.top == a_list(offset=offset)
        published += new
        for repeat in repeats:
            assert newest.take("u", encode_list(a_list(offset=repeat % published))) is None
            assert newest["u"].offset == published - 1
        assert newest.take("u", None) == Update("u", None)
        assert newest.take("u", None) is None
        for repeat in repeats:
            assert newest.take("u", encode_list(a_list(offset=repeat % published))) is None
            assert "u" not in newest


def test_a_list_of_a_higher_epoch_is_newer_whatever_its_offset() -> None:
    newest = Newest()
    newest.take("u", encode_list(a_list(offset=1_000_000)))
    assert newest.take("u", encode_list(a_list(offset=-3, epoch=1))) == Update("u", a_list(offset=-3, epoch=1))
    assert newest.take("u", encode_list(a_list(offset=2_000_000))) is None


def test_of_erased_users_a_bounded_number_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "ERASED_REMEMBERED", 2)
    newest = Newest()
    for user in ("a", "b", "c"):
        newest.take(user, encode_list(a_list(user)))
        newest.take(user, None)
    back = [user for user in ("a", "b", "c") if newest.take(user, encode_list(a_list(user)))]
    assert back == ["a"]


def test_a_list_of_another_schema_is_not_misread() -> None:
    with pytest.raises(ValueError, match="schema 2, not 1"):
        Newest().take("u", encode_list(a_list(schema=2)))


def test_the_reader_imports_no_model_runtime_and_no_settings() -> None:
    code = (
        "import sys, stream_worker.reader\n"
        "print(sorted({'onnxruntime', 'numpy', 'polars', 'pydantic', 'prometheus_client'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


class Written:
    """A recommendations topic of one's own."""

    def __init__(self, broker: Broker, name: str, partitions: int) -> None:
        self.broker, self.name = broker, name
        admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
        admin.create_topics({name: {"num_partitions": partitions, "replication_factor": 1}}, wait_for_metadata=True)
        admin.close()
        self._producer = KafkaProducer(bootstrap_servers=broker.bootstrap, acks="all")

    def write(self, *tops: TopK | str) -> None:
        """Lists, and erasures by user."""
        for top in tops:
            key, value = (top, None) if isinstance(top, str) else (top.user, encode_list(top))
            self._producer.send(self.name, value, key.encode())
        self._producer.flush(10)

    def close(self) -> None:
        self._producer.close(timeout=5)


@pytest.fixture
def topic(broker: Broker, unique: Callable[[str], str]) -> Iterator[Written]:
    written = Written(broker, unique("recommendations"), 3)
    yield written
    written.close()


def test_the_newest_list_of_each_user_is_known_once_caught_up(topic: Written) -> None:
    users = [f"u{number}" for number in range(100)]
    topic.write(*(a_list(user, offset) for offset in (1, 0, 2, 2) for user in users), "u7")
    with Recommendations(topic.broker.bootstrap, topic.name) as lists:
        assert lists.latest("u1") is None
        lists.wait_caught_up(20)
        assert len(lists) == 99
        assert {top.offset for user in users if (top := lists.latest(user))} == {2}
        assert lists.latest("u7") is None
        assert "u7" not in lists
        topic.write(a_list("u7", 1), "u8", a_list("u7", 3))
        found: list[Update] = []
        for update in lists:
            found.append(update)
            if len(found) == 2:
                break
        assert sorted(found) == [Update("u7", a_list("u7", 3)), Update("u8", None)]
        assert lists.poll() == []
    latest = lists.latest("u7")
    assert latest is not None  # what was read stays
    assert latest.offset == 3


def test_what_is_no_list_is_named_with_its_place(topic: Written) -> None:
    topic.write(a_list("u1", schema=2))
    wanted = pytest.raises(DataError, match=rf"{topic.name}-\d@0: .* schema 2, not 1")
    with Recommendations(topic.broker.bootstrap, topic.name) as lists, wanted:
        lists.wait_caught_up(20)
    with pytest.raises(SettingsError, match="context manager"):
        lists.poll()


def test_what_is_no_list_hides_no_other_one(topic: Written) -> None:
    topic.write(*(a_list(f"u{n}", schema=2 if n % 10 == 0 else 1) for n in range(100)))
    with Recommendations(topic.broker.bootstrap, topic.name) as lists:
        foreign = 0
        while True:
            try:
                lists.wait_caught_up(20)
            except DataError:
                foreign += 1
            else:
                break
        assert 1 <= foreign <= 10
        assert len(lists) == 90


def test_a_missing_topic_and_a_missing_broker_are_said(broker: Broker, unique: Callable[[str], str]) -> None:
    with pytest.raises(DataError, match="there is no topic"), Recommendations(broker.bootstrap, unique("none")):
        pass
    away = Recommendations("127.0.0.1:9", bootstrap_timeout_ms=200)
    with pytest.raises(TransportError, match="Is it running"), away:
        pass
