"""What people call the items, and a list as the page shows it: pure functions of what the bundle says."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from stream_worker.errors import BundleError
from stream_worker.manifest import ITEM_ROWS
from stream_worker.messages import TopK

SHOWN = 10

# MovieLens sorts by title: "Usual Suspects, The", "Postino, Il (The Postman)".
_SORTED = re.compile(r"(.+), (The|A|An|Il|La|Le|Les|El|Das|Der|Die)( \(.*\))?")


class _Row(msgspec.Struct):
    """A line of items.jsonl."""

    item: str
    title: str = ""
    attributes: dict[str, Any] = {}


class Title(msgspec.Struct, frozen=True):
    """An item, what it is called, and what else is known: year and genres."""

    item: str
    title: str
    detail: str


class Titles:
    """All titles by item. An item that the bundle does not know is called by its id."""

    def __init__(self, titles: Mapping[str, Title]) -> None:
        self._titles = titles

    @classmethod
    def of_bundle(cls, bundle: Path) -> "Titles":
        """Read a bundle's items.

        Raises:
            BundleError: they are not readable.
        """
        decode = msgspec.json.Decoder(_Row).decode
        try:
            rows = [decode(line) for line in (bundle / ITEM_ROWS).read_bytes().splitlines()]
        except (OSError, msgspec.MsgspecError) as error:
            raise BundleError(f"bundle {bundle / ITEM_ROWS}: {error}. Export it again.") from error
        return cls({row.item: Title(row.item, spoken(row.title) or row.item, _detail(row.attributes)) for row in rows})

    def __contains__(self, item: str) -> bool:
        """Whether the model knows this item."""
        return item in self._titles

    def __getitem__(self, item: str) -> Title:
        """The title of any item."""
        return self._titles.get(item) or Title(item, item, "")


def spoken(title: str) -> str:
    """A title as one would say it."""
    found = _SORTED.fullmatch(title)
    return f"{found[2]} {found[1]}{found[3] or ''}" if found else title


def shown(titles: Titles, found: TopK | None, popular: Sequence[str]) -> list[dict[str, object]]:
    """The rows of a list: item, title, detail, score, and the title that moved it; `popular` where there is none."""
    if found is None:
        return [_row(titles[item], None, None) for item in popular[:SHOWN]]
    items, scores = found.items[:SHOWN], found.scores[:SHOWN]
    because = found.because if isinstance(found.because, list) else [None] * len(items)
    return [_row(titles[item], score, why) for item, score, why in _with_names(titles, items, scores, because)]


def _with_names(
    titles: Titles, items: Sequence[str], scores: Sequence[float], because: Sequence[str | None]
) -> list[tuple[str, float, str | None]]:
    names = [None if item is None else titles[item].title for item in because[: len(items)]]
    return list(zip(items, scores, names, strict=True))


def _row(title: Title, score: float | None, because: str | None) -> dict[str, object]:
    return {
        "item": title.item,
        "title": title.title,
        "detail": title.detail,
        "score": score,
        "because": because,
    }


def _detail(attributes: Mapping[str, Any]) -> str:
    genres = attributes.get("genres")
    parts = [attributes.get("year"), ", ".join(map(str, genres)) if isinstance(genres, list) else None]
    return " · ".join(str(part) for part in parts if part)
