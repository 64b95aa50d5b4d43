"""The wire: what is an event, what is not, and why."""

import random
from typing import Any

import msgspec
import pytest

from stream_worker.errors import RejectedEventError, SettingsError
from stream_worker.messages import NO_TIMESTAMP, Event, EventDecoder, TopK, decode_list, encode_list, item_hash

NOW = 1_767_225_600_000
decode = EventDecoder()


def decoded(value: dict[str, Any] | bytes, key: str | None = "u17", timestamp: int = NOW) -> Event:
    raw = value if isinstance(value, bytes) else msgspec.json.encode(value)
    return decode(None if key is None else key.encode(), raw, timestamp)


def reason(value: dict[str, Any] | bytes, key: str | None = "u17", timestamp: int = NOW) -> str:
    with pytest.raises(RejectedEventError) as caught:
        decoded(value, key, timestamp)
    assert str(caught.value)
    return caught.value.reason


def test_an_event_with_all_fields() -> None:
    value = {"user": "u17", "item": "i42", "action": "click", "time": NOW, "page": {"url": "/x"}}
    assert decoded(value) == Event("u17", "i42", "click", NOW)


def test_action_and_time_have_defaults_and_integers_are_ids() -> None:
    assert decoded({"user": 17, "item": 42}, key="17", timestamp=NOW + 5) == Event("17", "42", "view", NOW + 5)


@pytest.mark.parametrize(
    "time", ["2026-01-01T00:00:00Z", "2026-01-01T01:00:00+01:00", "2026-01-01T00:00:00.000Z", float(NOW), NOW]
)
def test_times_are_epoch_milliseconds_or_rfc_3339(time: object) -> None:
    assert decoded({"user": "u17", "item": "i", "time": time}).time_ms == NOW


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"{", "not_json"),
        (b"", "not_json"),
        (b"\xff\xfe", "not_json"),
        (b'{"user": "\xff", "item": "i"}', "not_json"),
        (b'{"x": ' + b"[" * 100_000, "not_json"),
        (b"[1]", "invalid_field"),
        (b"null", "invalid_field"),
        ({"item": "i"}, "missing_field"),
        ({"user": "u17"}, "missing_field"),
        ({"user": None, "item": "i"}, "missing_field"),
        ({"user": "", "item": "i"}, "invalid_field"),
        ({"user": "u17", "item": "x" * 257}, "invalid_field"),
        ({"user": "u17", "item": "é" * 129}, "invalid_field"),
        ({"user": "u17", "item": "a\nb"}, "invalid_field"),
        ({"user": "u17", "item": "a\x85b"}, "invalid_field"),
        ({"user": "u17", "item": 1.5}, "invalid_field"),
        ({"user": "u17", "item": True}, "invalid_field"),
        ({"user": ["u17"], "item": "i"}, "invalid_field"),
        ({"user": "u17", "item": "i", "action": ""}, "invalid_field"),
        ({"user": "u17", "item": "i", "action": "x" * 65}, "invalid_field"),
        ({"user": "u17", "item": "i", "action": 3}, "invalid_field"),
        ({"user": "u17", "item": "i", "time": "yesterday"}, "invalid_field"),
        ({"user": "u17", "item": "i", "time": "2026-01-01T00:00:00"}, "invalid_field"),
        (b'{"user": "u17", "item": "i", "time": 1e999}', "invalid_field"),
        (b'{"user": "u17", "item": "i", "time": 1e308}', "time_in_future"),
        ({"user": "u17", "item": "i", "time": NOW // 1000}, "time_too_old"),
        ({"user": "u17", "item": "i", "time": NOW + 301_000}, "time_in_future"),
        (b'{"user": "\\ud800", "item": "i"}', "not_json"),
        (b'{"user": ' + b"9" * 5000 + b', "item": "i"}', "invalid_field"),
    ],
)
def test_what_is_not_an_event_is_rejected_with_its_reason(value: dict[str, Any] | bytes, why: str) -> None:
    assert reason(value) == why


def test_the_key_must_be_the_user() -> None:
    value = {"user": "u17", "item": "i"}
    assert reason(value, key="u18") == "key_not_user"
    assert reason(value, key=None) == "key_not_user"
    assert decode(None, msgspec.json.encode(value), NOW, keyed=False).user == "u17"


def test_the_user_for_everybody_is_reserved() -> None:
    assert reason({"user": "*", "item": "i"}, key="*") == "reserved_user"


def test_a_record_without_a_value_is_rejected() -> None:
    with pytest.raises(RejectedEventError) as caught:
        decode(b"u17", None, NOW)
    assert caught.value.reason == "empty"


def test_forget_needs_no_item() -> None:
    assert decoded({"user": "u17", "action": "forget"}) == Event("u17", "", "forget", NOW)


def test_whatever_else_a_forget_says_it_is_one() -> None:
    for more in ({"item": ""}, {"item": "i" * 300}, {"time": NOW // 1000}, {"time": "yesterday"}):
        assert decoded({"user": "u17", "action": "forget"} | more) == Event("u17", "", "forget", NOW)


def test_a_kafka_timestamp_that_is_none_is_no_time_of_an_event() -> None:
    value = {"user": "u17", "item": "i"}
    assert reason(value, timestamp=NOW * 1000) == "time_in_future"
    assert reason(value | {"time": NOW}, timestamp=NOW * 1000) == "time_in_future"  # nor may the state count by it
    assert reason(value, timestamp=0) == "time_too_old"
    assert reason(value, timestamp=-5) == "time_too_old"
    assert decoded(value | {"time": NOW}, timestamp=NOW).time_ms == NOW


def test_without_a_kafka_timestamp_the_event_needs_its_own() -> None:
    value = {"user": "u17", "item": "i"}
    assert reason(value, timestamp=NO_TIMESTAMP) == "missing_field"
    assert decoded(value | {"time": NOW}, timestamp=NO_TIMESTAMP).time_ms == NOW
    assert reason(value | {"time": NOW * 1000}, timestamp=NO_TIMESTAMP) == "time_in_future"


def test_fields_are_found_where_the_settings_say() -> None:
    elsewhere = EventDecoder("properties.user-id", "properties.product.id", "event", "sent_at")
    value = {"event": "click", "sent_at": NOW, "properties": {"user-id": "u17", "product": {"id": 7, "name": "x"}}}
    assert elsewhere(b"u17", msgspec.json.encode(value), NOW) == Event("u17", "7", "click", NOW)
    with pytest.raises(RejectedEventError) as caught:
        elsewhere(b"u17", b'{"event": "click"}', NOW)
    assert caught.value.reason == "missing_field"
    assert "properties.user-id" in str(caught.value)


@pytest.mark.parametrize("paths", [("a", "a"), ("a", "a.b"), ("a.b", "a"), ("a..b", "c"), ("", "c")])
def test_paths_that_contradict_each_other_are_refused(paths: tuple[str, str]) -> None:
    with pytest.raises(SettingsError, match="event field"):
        EventDecoder(*paths)


def csv_hook(value: bytes) -> dict[str, Any]:
    """A team's own format: user;item."""
    user, item = value.decode().split(";")
    return {"user": user, "item": item}


def test_a_hook_decodes_another_format_and_its_errors_reject_one_event() -> None:
    hooked = EventDecoder(hook="tests.worker.test_messages:csv_hook")
    assert hooked(b"u17", b"u17;i1", NOW) == Event("u17", "i1", "view", NOW)
    with pytest.raises(RejectedEventError) as caught:
        hooked(b"u17", b"u17", NOW)
    assert caught.value.reason == "not_decodable"
    assert str(caught.value) == "the decoder refused it: ValueError"  # what it said may hold the event
    assert "not enough values to unpack" in caught.value.detail
    with pytest.raises(SettingsError, match=r"event_decoder .*package\.module:name"):
        EventDecoder(hook="no.such.module:function")


def test_random_and_mutated_payloads_are_decoded_or_rejected_never_more(seed: int) -> None:
    rng = random.Random(seed)
    good = b'{"user": "u17", "item": "i42", "action": "click", "time": 1767225600000, "x": [1, {"y": null}]}'
    outcomes = {"decoded": 0, "rejected": 0}
    for _ in range(50_000):
        if rng.random() < 0.2:
            payload = rng.randbytes(rng.randrange(80))
        else:
            mutated = bytearray(good)
            for _ in range(rng.randrange(1, 6)):
                place = rng.randrange(len(mutated))
                match rng.randrange(3):
                    case 0:
                        mutated[place] = rng.randrange(256)
                    case 1:
                        del mutated[place]
                    case _:
                        mutated.insert(place, rng.choice(b'{}[]",:0123456789\\ue.-+'))
            payload = bytes(mutated)
        try:
            decode(b"u17", payload, NOW)
            outcomes["decoded"] += 1
        except RejectedEventError:
            outcomes["rejected"] += 1
    assert sum(outcomes.values()) == 50_000
    assert min(outcomes.values()) > 1000


def test_a_list_survives_the_wire_and_tolerates_new_fields() -> None:
    top = TopK(
        user="u17", items=["i9", "i3"], scores=[4.2, 3.9], model="m", variant="a", events=57,
        event_time=NOW, received_time=NOW, published_time=NOW + 3, partition=3, offset=1881,
    )  # fmt: skip
    raw = encode_list(top)
    assert decode_list(raw) == top
    assert b"because" not in raw
    assert decode_list(raw[:-1] + b',"new":1}') == top
    assert set(msgspec.json.decode(raw)) == {
        "schema", "user", "items", "scores", "model", "variant", "events", "event_time", "received_time",
        "published_time", "epoch", "partition", "offset",
    }  # fmt: skip


def test_the_hash_of_an_item_never_changes() -> None:
    assert (item_hash("i42"), item_hash("")) == (0xC55F260C193DD5F1, 0x2D06800538D394C2)
