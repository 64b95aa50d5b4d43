"""The state of users as records of the changelog topic, and back (docs/formats.md).

All numbers are little-endian. A user's record says everything itself: no model, no setting and no other record is
needed to read it. Axes: H history length, E excluded length, B users.
"""

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_worker.errors import DataError
from stream_worker.state import Actions, Copy, Partition
from stream_worker.transports.base import Change, Record

VERSION = 1
MAX_NAMES = 10_000  # different lists of action names that are remembered
POSITION_KEY = b"\0position"  # no user's key: ids have no control characters

# version, events in the history, excluded items, bytes of the action names, `events`, applied, listed, timestamp
_HEADER = struct.Struct("<BxHHxxI4xqqqq")
_OFFSETS, _OFFSETS_AT = struct.Struct("<qq"), 24  # applied and listed, in the header
_ITEM, _TIME, _ACTION = np.dtype("<u8"), np.dtype("<u4"), np.dtype("<u2")


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """Where the partition's state stands, and what it was made with: the value of the record at `POSITION_KEY`.

    next_offset: of the events partition, to read from: the first whose rejection or erasure was not acknowledged.
    folded_offset: all events before it are in the state.
    newest: the highest Kafka timestamp of a folded record, epoch ms.
    topic_id: of the events topic, which another topic of the same name does not have (KIP-516).
    partitions: of the events topic.
    history_length, excluded_length: H and E.
    epoch: lists of a higher one are newer, whatever their offset.
    """

    next_offset: int
    folded_offset: int
    newest: int
    topic_id: str
    partitions: int
    history_length: int
    excluded_length: int
    epoch: int = 0


_decode_position = msgspec.json.Decoder(Position).decode


def encode_position(position: Position) -> bytes:
    """The value of a position record: the version byte, then JSON."""
    return bytes([VERSION]) + msgspec.json.encode(position)


def changes(number: int, copy: Copy, actions: Actions) -> Iterator[Change]:
    """The records of one partition's changed users.

    Args:
        number: the partition.
        copy: its users.
        actions: names of the codes in it; may grow meanwhile, on another thread.
    """
    h = copy.histories

    @lru_cache(maxsize=256)
    def names_of(codes: frozenset[int]) -> tuple[bytes, NDArray[np.uint16]]:
        """The names of these codes, and code -> place of its name among them."""
        ordered = sorted(codes)
        places = np.zeros(ordered[-1] + 1 if ordered else 0, _ACTION)
        places[ordered] = np.arange(len(ordered))
        return "\0".join(actions.names[code] for code in ordered).encode(), places

    numbers = zip(
        h.length_B.tolist(), h.excluded_length_B.tolist(), copy.events_B.tolist(), copy.applied_offset_B.tolist(),
        copy.listed_offset_B.tolist(), copy.timestamp_B.tolist(), strict=True,
    )  # fmt: skip
    for b, (length, excluded, events, applied, listed, timestamp) in enumerate(numbers):
        codes = np.concatenate([h.actions_BH[b, :length], h.excluded_actions_BE[b, :excluded]])
        names, places = names_of(frozenset(codes.tolist()))
        value = b"".join(
            (
                _HEADER.pack(VERSION, length, excluded, len(names), events, applied, listed, timestamp),
                h.items_BH[b, :length].tobytes(),
                h.excluded_items_BE[b, :excluded].tobytes(),
                h.times_BH[b, :length].tobytes(),
                places[codes].tobytes(),
                names,
            )
        )
        yield Change(number, copy.users[b].encode(), value)
    for user in copy.gone:
        yield Change(number, user.encode(), None)


def decode_position(value: bytes) -> Position:
    """A position record's value.

    Raises:
        ValueError: it is none, or of another version.
    """
    _check_version(value)
    return _decode_position(value[1:])


class Offsets(NamedTuple):
    """What a user's record says of offsets and times: the last event folded, the last listed, its Kafka timestamp."""

    applied: int
    listed: int
    timestamp: int


def offsets(value: bytes) -> Offsets:
    """Of the value of a user's record.

    Raises:
        ValueError: it is none, or of another version.
    """
    _check_version(value)
    try:
        return Offsets(*_HEADER.unpack_from(value)[-3:])
    except struct.error as error:
        raise ValueError(f"{len(value)} bytes are no state") from error


def moved(value: bytes, applied: int, listed: int) -> bytes:
    """A user's record with other offsets."""
    return value[:_OFFSETS_AT] + _OFFSETS.pack(applied, listed) + value[_OFFSETS_AT + _OFFSETS.size :]


class Loader:
    """Writes records of the changelog into a partition.

    Args:
        state: empty at first.
        actions: names are interned there.
        where: topic and partition, for errors.
    """

    def __init__(self, state: Partition, actions: Actions, where: str) -> None:
        self._state = state
        self._actions = actions
        self._where = where
        self._codes: dict[bytes, NDArray[np.uint16]] = {}  # names as they stand in records -> codes
        self.position: Position | None = None

    def load(self, records: Sequence[Record]) -> None:
        """Take these records over, in order.

        Raises:
            DataError: a record is not ours, of a later version, or of longer histories than this worker keeps.
        """
        for record in records:
            key, value = record.key, record.value
            try:
                if key == POSITION_KEY:
                    self.position = self._position(value)
                elif key is not None and value is None:
                    self._state.drop(key.decode())
                elif key is not None and value is not None:
                    self._user(key.decode(), value)
                else:
                    raise ValueError("it has no key")
            except (ValueError, IndexError, struct.error, msgspec.DecodeError) as error:
                raise DataError(
                    f"{self._where}@{record.offset}: not a state of this version of stream-worker: {error}. "
                    "Does something else write to the topic, or has a newer version?"
                ) from error

    def _position(self, value: bytes | None) -> Position | None:
        return None if value is None else decode_position(value)

    def _user(self, user: str, value: bytes) -> None:
        _check_version(value)
        length, excluded, names_size, events, applied, listed, timestamp = _HEADER.unpack_from(value)[1:]
        state = self._state
        if length > state.items.shape[1] or excluded > state.excluded_items.shape[1]:
            raise DataError(_lengths(self._where, length, excluded))
        items = np.frombuffer(value, _ITEM, length + excluded, _HEADER.size)
        offset = _HEADER.size + items.nbytes
        times = np.frombuffer(value, _TIME, length, offset)
        offset += times.nbytes
        places = np.frombuffer(value, _ACTION, length + excluded, offset)
        names = value[offset + places.nbytes :]
        if len(names) != names_size:
            raise ValueError(f"{len(value)} bytes do not fit its header")
        actions = self._codes_of(names)[places]
        row = state.place(user)
        state.items[row, :length] = items[:length]
        state.excluded_items[row, :excluded] = items[length:]
        state.times[row, :length] = times
        state.actions[row, :length] = actions[:length]
        state.excluded_actions[row, :excluded] = actions[length:]
        state.length[row] = length
        state.excluded_length[row] = excluded
        state.events[row] = events
        state.applied_offset[row] = applied
        state.listed_offset[row] = listed
        state.timestamp[row] = timestamp

    def _codes_of(self, names: bytes) -> NDArray[Any]:
        codes = self._codes.get(names)
        if codes is None:
            if len(self._codes) == MAX_NAMES:
                self._codes.clear()
            found = [self._actions.code(name) for name in names.decode().split("\0")] if names else []
            codes = self._codes[names] = np.array(found, np.uint16)
        return codes


def _lengths(where: str, history: int, excluded: int) -> str:
    return (
        f"{where}: was written with a longer history. Start with --history-length {history} --excluded-length "
        f"{excluded} or more, as before, or name a new --state-topic to begin anew."
    )


def _check_version(value: bytes) -> None:
    if value[:1] != bytes([VERSION]):
        raise ValueError(f"version {value[0] if value else 'none'}, not {VERSION}")
