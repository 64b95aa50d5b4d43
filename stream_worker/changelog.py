"""The state of users as records of the changelog topic, and back (docs/formats.md).

All numbers are little-endian. A user's record says everything itself: no model, no setting and no other record is
needed to read it. Users are written and read many at once: a NumPy call costs as much for one as for hundreds.
Axes: H history length, E excluded length, W = H + E, B users, A actions; _N is flat, user after user.
"""

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_worker.errors import DataError
from stream_worker.state import Actions, Copy, Histories, Partition
from stream_worker.transports.base import Change, Record

VERSION = 1
POSITION_KEY = b"\0position"  # no user's key: ids have no control characters

_HEADER = np.dtype(
    {
        "names": ["version", "length", "excluded_length", "names_size", "events", "applied", "listed", "timestamp"],
        "formats": ["u1", "<u2", "<u2", "<u4", "<i8", "<i8", "<i8", "<i8"],
        "offsets": [0, 2, 4, 8, 16, 24, 32, 40],
    }
)
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
    header = np.frombuffer(value, _HEADER, 1)[0]
    return Offsets(int(header["applied"]), int(header["listed"]), int(header["timestamp"]))


def changes(number: int, copy: Copy, actions: Actions) -> Iterator[Change]:
    """The records of one partition's changed users.

    Args:
        number: the partition.
        copy: its users.
        actions: names of the codes in it; may grow meanwhile, on another thread.
    """
    yield from map(Change, repeat(number), map(str.encode, copy.users), _encode(copy, actions))
    for user in copy.gone:
        yield Change(number, user.encode(), None)


def _encode(copy: Copy, actions: Actions) -> Iterator[bytes]:
    """The value of each user's record."""
    h = copy.histories
    filled_BW = _filled(h.length_B, h.excluded_length_B, h.items_BH.shape[1], h.excluded_items_BE.shape[1])
    filled_BH = filled_BW[:, : h.items_BH.shape[1]]
    count_B = h.length_B + h.excluded_length_B
    items_N = np.hstack([h.items_BH, h.excluded_items_BE])[filled_BW]
    codes_N = np.hstack([h.actions_BH, h.excluded_actions_BE])[filled_BW]
    places_N, names_B = _places(codes_N, np.repeat(np.arange(len(copy.users)), count_B), len(copy.users), actions)
    header_B = np.zeros(len(copy.users), _HEADER)
    header_B["version"] = VERSION
    header_B["length"] = h.length_B
    header_B["excluded_length"] = h.excluded_length_B
    header_B["names_size"] = list(map(len, names_B))
    header_B["events"] = copy.events_B
    header_B["applied"] = copy.applied_offset_B
    header_B["listed"] = copy.listed_offset_B
    header_B["timestamp"] = copy.timestamp_B
    parts = zip(
        _cut(header_B, np.ones_like(count_B)),
        _cut(items_N.astype(_ITEM, copy=False), count_B),
        _cut(h.times_BH[filled_BH].astype(_TIME, copy=False), h.length_B),
        _cut(places_N, count_B),
        names_B,
        strict=True,
    )
    return map(b"".join, parts)


def _filled(length_B: NDArray[Any], excluded_length_B: NDArray[Any], h: int, e: int) -> NDArray[np.bool_]:
    """[B, W]: which places of the histories, and of the excluded items beside them, are filled."""
    return np.hstack([np.arange(h) < length_B[:, None], np.arange(e) < excluded_length_B[:, None]])


def _places(
    codes_N: NDArray[np.uint16], users_N: NDArray[np.intp], users: int, actions: Actions
) -> tuple[NDArray[np.uint16], list[bytes]]:
    """Codes as places among the names that the user's record has, and these names of each user."""
    codes_A = np.flatnonzero(np.bincount(codes_N))
    index_of = np.zeros(len(actions.names), np.intp)
    index_of[codes_A] = np.arange(len(codes_A))
    index_N = index_of[codes_N]
    has_BA = np.zeros((users, len(codes_A)), np.bool_)
    has_BA[users_N, index_N] = True
    places_BA = np.cumsum(has_BA, 1, _ACTION) - _ACTION.type(1)
    has_B = list(_cut(has_BA, np.full(users, len(codes_A))))
    names = {
        has: "\0".join(actions.names[code] for code in codes_A[np.frombuffer(has, np.bool_)].tolist()).encode()
        for has in set(has_B)  # few
    }
    return places_BA[users_N, index_N], [names[has] for has in has_B]


def _cut(values_N: NDArray[Any], count_B: NDArray[Any]) -> Iterator[bytes]:
    """The bytes of each user's values."""
    data = values_N.tobytes()
    ends = (np.cumsum(count_B) * values_N.itemsize).tolist()
    return map(data.__getitem__, map(slice, [0, *ends], ends))


def moved(value: bytes, applied: int, listed: int) -> bytes:
    """A user's record with other offsets."""
    header_B = np.frombuffer(value, _HEADER, 1).copy()
    header_B["applied"], header_B["listed"] = applied, listed
    return header_B.tobytes() + value[_HEADER.itemsize :]


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
        self.position: Position | None = None

    def load(self, records: Sequence[Record]) -> None:
        """Take these records over, in order.

        Raises:
            DataError: a record is not ours, of a later version, or of longer histories than this worker keeps.
        """
        try:
            self._load(records)
        except (ValueError, msgspec.DecodeError) as error:
            if len(records) == 1:
                raise DataError(
                    f"{self._where}@{records[0].offset}: not a state of this version of stream-worker: {error}. "
                    "Does something else write to the topic, or has a newer version?"
                ) from error
            for record in records:  # which one it is
                self.load([record])

    def _load(self, records: Sequence[Record]) -> None:
        newest = {record.key: record.value for record in records}
        if POSITION_KEY in newest:
            position = newest.pop(POSITION_KEY)
            self.position = None if position is None else decode_position(position)
        values: dict[str, bytes] = {}
        gone = []
        for key, value in newest.items():
            if key is None:
                raise ValueError("it has no key")
            if value is None:
                gone.append(key.decode())
            else:
                values[key.decode()] = value
        if values or gone:
            self._state.take_over(self._decode(list(values), list(values.values()), gone))

    def _decode(self, users: list[str], values: Sequence[bytes], gone: list[str]) -> Copy:
        """What `changes` made records of."""
        size = _HEADER.itemsize
        if any(len(value) < size for value in values):
            raise ValueError(f"less than the {size} bytes of a header")
        header_B = np.frombuffer(b"".join([value[:size] for value in values]), _HEADER)
        if (header_B["version"] != VERSION).any():
            raise ValueError(f"version {header_B['version'].max()}, not {VERSION}")
        length_B, excluded_length_B = header_B["length"].astype(np.int32), header_B["excluded_length"].astype(np.int32)
        h, e = self._state.items.shape[1], self._state.excluded.items.shape[1]
        if (length_B > h).any() or (excluded_length_B > e).any():
            raise DataError(_lengths(self._where, int(length_B.max()), int(excluded_length_B.max())))
        count_B = length_B + excluded_length_B
        items_N, ends_B = _join(values, np.full(len(values), size), count_B, _ITEM)
        times_N, ends_B = _join(values, ends_B, length_B, _TIME)
        places_N, ends_B = _join(values, ends_B, count_B, _ACTION)
        names_B = [value[end:] for value, end in zip(values, ends_B.tolist(), strict=True)]
        if [len(names) for names in names_B] != header_B["names_size"].tolist():
            raise ValueError("its size does not fit its header")
        filled_BW = _filled(length_B, excluded_length_B, h, e)
        items_BW, actions_BW = np.zeros_like(filled_BW, np.uint64), np.zeros_like(filled_BW, np.uint16)
        times_BH = np.zeros((len(users), h), np.uint32)
        items_BW[filled_BW] = items_N
        times_BH[filled_BW[:, :h]] = times_N
        actions_BW[filled_BW] = self._codes(names_B, places_N, count_B)
        return Copy(
            users,
            Histories(
                items_BW[:, :h], times_BH, actions_BW[:, :h], length_B,
                items_BW[:, h:], actions_BW[:, h:], excluded_length_B,
            ),
            header_B["events"], header_B["applied"], header_B["listed"], header_B["timestamp"],
            gone,
        )  # fmt: skip

    def _codes(self, names_B: list[bytes], places_N: NDArray[Any], count_B: NDArray[Any]) -> NDArray[np.uint16]:
        """Places among the names of each user's record, as codes of ours."""
        codes: list[int] = []  # of one list of names after the other
        bounds: dict[bytes, tuple[int, int]] = {}  # where there
        for names in dict.fromkeys(names_B):  # few
            found = [self._actions.code(name) for name in names.decode().split("\0")] if names else []
            bounds[names] = len(codes), len(codes) + len(found)
            codes += found
        bounds_B = np.array([bounds[names] for names in names_B], np.intp).reshape(-1, 2)
        firsts_N, ends_N = np.repeat(bounds_B, count_B, axis=0).T
        if (firsts_N + places_N >= ends_N).any():
            raise ValueError("an action without a name")
        codes_N: NDArray[np.uint16] = np.array(codes, np.uint16)[firsts_N + places_N]
        return codes_N


def _join(
    values: Sequence[bytes], starts_B: NDArray[Any], count_B: NDArray[Any], dtype: np.dtype[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """So many numbers of each value from there on, and where they end."""
    ends_B = starts_B + count_B * dtype.itemsize
    cuts = zip(values, starts_B.tolist(), ends_B.tolist(), strict=True)
    data = b"".join([value[start:end] for value, start, end in cuts])
    if len(data) != count_B.sum() * dtype.itemsize:
        raise ValueError("it is shorter than its header says")
    return np.frombuffer(data, dtype), ends_B


def _check_version(value: bytes) -> None:
    if value[:1] != bytes([VERSION]):
        raise ValueError(f"version {value[0] if value else 'none'}, not {VERSION}")


def _lengths(where: str, history: int, excluded: int) -> str:
    return (
        f"{where}: was written with a longer history. Start with --history-length {history} --excluded-length "
        f"{excluded} or more, as before, or name a new --state-topic to begin anew."
    )
