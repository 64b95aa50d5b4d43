"""The wire: events in, lists out, and the two functions that touch bytes (docs/formats.md)."""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any

import msgspec
import xxhash

from stream_worker import plugins
from stream_worker.errors import RejectedEventError, SettingsError

MAX_ID_BYTES = 256
MAX_ACTION_BYTES = 64
RESERVED_USER = "*"  # the list for everybody
FORGET = "forget"  # the action that erases a user
NEGATIVE_ACTIONS = ("hide", "dislike")  # of an item that the user does not want: neither a hit of a list nor a miss
NO_TIMESTAMP = -1  # Kafka's own value for a record without one
# Seconds taken for milliseconds lie in January 1970, so this tells them; it leaves room for old data sets.
EARLIEST_MS = 631_152_000_000  # 1990
LATEST_MS = 2**32 * 1000  # 2106: a state keeps whole seconds in 32 bits
SCHEMA = 1

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

Hook = Callable[[bytes], Mapping[str, Any]]


class Event(msgspec.Struct, gc=False):
    """One well-formed event. `time_ms` is the event's own time, epoch milliseconds; `item` is "" for forget."""

    user: str
    item: str
    action: str
    time_ms: int


class TopK(msgspec.Struct, kw_only=True, gc=False):
    """One list, the value of a record on `recommendations`. Times are epoch milliseconds."""

    schema: int = SCHEMA
    user: str
    items: list[str]
    scores: list[float]
    because: list[str | None] | msgspec.UnsetType = msgspec.UNSET
    model: str
    variant: str
    events: int
    event_time: int
    received_time: int
    published_time: int
    epoch: int = 0
    partition: int
    offset: int


encode_list = msgspec.json.Encoder().encode
decode_list = msgspec.json.Decoder(TopK).decode


def item_hash(item: str) -> int:
    """The 64-bit xxh3 hash that stands for an item in the state."""
    return xxhash.xxh3_64_intdigest(item.encode())


class EventDecoder:
    """Bytes to `Event`, or a reason why not.

    Args:
        user, item, action, time: dotted paths of the fields in the JSON object.
        max_future_ms: how far an event may be ahead of its Kafka timestamp.
        hook: "package.module:function" from a record's value to a mapping of the same shape as the JSON object,
            for events in another format; what it raises rejects the event.
    """

    def __init__(
        self,
        user: str = "user",
        item: str = "item",
        action: str = "action",
        time: str = "time",
        max_future_ms: int = 300_000,
        hook: str | None = None,
    ) -> None:
        self._paths = (user, item, action, time)
        self._max_future_ms = max_future_ms
        kinds = (str | int | None, str | int | None, str | None, int | float | str | None)
        raw, getters = _raw_event(list(zip(self._paths, kinds, strict=True)))
        self._get = attrgetter(*getters)
        self._raw = raw
        self._hook: Hook | None = plugins.load(hook, "event_decoder") if hook else None
        self._decode_json: Callable[[bytes], Any] = msgspec.json.Decoder(raw).decode

    def __call__(self, key: bytes | None, value: bytes | None, timestamp: int, keyed: bool = True) -> Event:
        """Decode one record.

        Args:
            key: the record's key, which must be the user unless `keyed` is false.
            value: the record's value.
            timestamp: the record's Kafka timestamp, epoch ms, or `NO_TIMESTAMP`.

        Raises:
            RejectedEventError: the event is not well formed.
        """
        user, item, action, time = self._fields(value)
        user = user_id(user, self._paths[0])
        action = "view" if action is None else _identifier(action, self._paths[2], MAX_ACTION_BYTES)
        if keyed and key != user.encode():
            raise RejectedEventError("key_not_user", "the record's key is not the user: produce with key = user")
        if action == FORGET:  # whatever else the event says
            item, time = "", None if timestamp != NO_TIMESTAMP else time
        else:
            item = _identifier(item, self._paths[1])
        return Event(user, item, action, self._time(time, timestamp))

    def _fields(self, value: bytes | None) -> tuple[Any, Any, Any, Any]:
        if value is None:
            raise RejectedEventError("empty", "the record has no value")
        try:
            if self._hook is None:
                raw = self._decode_json(value)
            else:
                raw = msgspec.convert(self._call_hook(value), self._raw)
            return self._get(raw)
        except msgspec.ValidationError as error:
            raise RejectedEventError("invalid_field", str(error)) from None
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            raise RejectedEventError("not_json", f"not JSON: {error}") from None
        except AttributeError:  # a parent on the path is absent or null
            raise RejectedEventError("missing_field", f"one of {', '.join(self._paths)} is absent") from None
        except ValueError as error:  # such as an integer of ten thousand digits
            raise RejectedEventError("invalid_field", str(error)) from None

    def _call_hook(self, value: bytes) -> Mapping[str, Any]:
        assert self._hook is not None
        try:
            return self._hook(value)
        except Exception as error:  # the team's own code: whatever it raises concerns this event alone
            raise RejectedEventError(
                "not_decodable", f"the decoder refused it: {type(error).__name__}", str(error)
            ) from error

    def _time(self, time: float | str | None, timestamp: int) -> int:
        path = self._paths[3]
        if timestamp >= LATEST_MS:
            raise RejectedEventError(
                "time_in_future", f"the record's Kafka timestamp is {timestamp} ms, after 2106: is it microseconds?"
            )
        if time is None:
            if timestamp == NO_TIMESTAMP:
                raise RejectedEventError("missing_field", f"{path} is absent, and so is the record's timestamp")
            if timestamp < EARLIEST_MS:
                raise RejectedEventError(
                    "time_too_old", f"{path} is absent, and the record's Kafka timestamp, {timestamp} ms, before 1990"
                )
            return timestamp
        try:
            time_ms = _rfc3339_ms(time) if isinstance(time, str) else int(time)
        except (ValueError, OverflowError) as error:
            raise RejectedEventError(
                "invalid_field", f"{path} is neither epoch milliseconds nor RFC 3339", str(error)
            ) from None
        if time_ms < EARLIEST_MS:
            raise RejectedEventError("time_too_old", f"{path} is before 1990: it looks like seconds", f"{time_ms} ms")
        if timestamp != NO_TIMESTAMP and time_ms > timestamp + self._max_future_ms:
            raise RejectedEventError(
                "time_in_future",
                f"{path} is too far ahead of the record's Kafka timestamp",
                f"by {(time_ms - timestamp) // 1000} s",
            )
        if time_ms >= LATEST_MS:
            raise RejectedEventError("time_in_future", f"{path} is after 2106: is it microseconds?", f"{time_ms} ms")
        return time_ms


def user_id(value: str | int | None, path: str = "user") -> str:
    """A user's id as text.

    Args:
        value: the id.
        path: where it was found, for the message.

    Raises:
        RejectedEventError: no user can be called that.
    """
    user = _identifier(value, path)
    if user == RESERVED_USER:
        raise RejectedEventError("reserved_user", f"{path} is {RESERVED_USER!r}, which is reserved")
    return user


def _identifier(value: str | int | None, path: str, max_bytes: int = MAX_ID_BYTES) -> str:
    if value is None:
        raise RejectedEventError("missing_field", f"{path} is absent")
    try:
        text = value if isinstance(value, str) else str(value)
        size = len(text) if text.isascii() else len(text.encode())
    except ValueError as error:  # a lone surrogate, or an integer of thousands of digits
        raise RejectedEventError("invalid_field", f"{path}: {error}") from None
    if not 0 < size <= max_bytes:
        raise RejectedEventError("invalid_field", f"{path} has {size} bytes, not 1 to {max_bytes}")
    if not text.isprintable() and _CONTROL.search(text):
        raise RejectedEventError("invalid_field", f"{path} holds a control character")
    return text


def _rfc3339_ms(text: str) -> int:
    try:
        moment = msgspec.convert(text, datetime)
    except msgspec.ValidationError:
        raise ValueError(f"{text[:40]!r} is neither epoch milliseconds nor RFC 3339") from None
    if moment.tzinfo is None:
        raise ValueError(f"{text[:40]!r} has no UTC offset, which RFC 3339 requires")
    return (moment - _EPOCH) // _MILLISECOND


def _raw_event(paths: Sequence[tuple[str, Any]]) -> tuple[type[msgspec.Struct], list[str]]:
    """A struct that decodes just the fields at these dotted JSON paths, and the attribute path of each.

    One compiled struct decodes in half a microsecond whatever the shape is; all other fields are skipped unread.
    """
    tree: dict[str, Any] = {}
    for path, kind in paths:
        *parents, leaf = path.split(".")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise SettingsError(f"event field {path!r}: {name!r} is a field itself.")
        if not all((*parents, leaf)) or leaf in node:
            raise SettingsError(f"event field {path!r}: empty, or named twice.")
        node[leaf] = kind

    def struct(node: Mapping[str, Any]) -> tuple[type[msgspec.Struct], dict[str, str]]:
        fields: list[tuple[str, Any, Any]] = []
        renames: dict[str, str] = {}
        attributes: dict[str, str] = {}
        for index, (name, kind) in enumerate(node.items()):
            attribute = f"f{index}"
            renames[attribute] = name
            if isinstance(kind, dict):
                kind, below = struct(kind)
                attributes |= {f"{name}.{path}": f"{attribute}.{rest}" for path, rest in below.items()}
                kind = kind | None
            else:
                attributes[name] = attribute
            fields.append((attribute, kind, None))
        return msgspec.defstruct("RawEvent", fields, rename=renames, gc=False), attributes

    raw, attributes = struct(tree)
    return raw, [attributes[path] for path, _ in paths]
