"""What each user has seen in this run, and how well the lists foretold it."""

import threading
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from stream_worker.messages import TopK

HITS_AMONG = 10
RECENT = 8
ACTIVE = 200  # of the newest events, whose users count as active


@dataclass(frozen=True)
class Comparison:
    """Two ways to guess the same events: the user's own list, and what most people watch."""

    judged: int = 0
    own_hits: int = 0
    popular_hits: int = 0


class Audience:
    """Users and their items. The replay's thread and the page's share it.

    An event is judged before its user has seen its item, against the list that a reader of the topic holds at that
    moment, and against the most popular items that the user has not seen: both on the same events, of users who have
    a list. Clicks on the page are not judged, because people click what the list shows.

    Args:
        popular: all items, by their number of events in the part that trained the model.
    """

    def __init__(self, popular: Sequence[str]) -> None:
        self._lock = threading.Lock()
        self._popular = popular
        self._seen: defaultdict[str, dict[str, None]] = defaultdict(dict)  # as a set that keeps the order
        self._active: deque[str] = deque(maxlen=ACTIVE)
        self._comparison = Comparison()

    def replayed(self, user: str, item: str, held: TopK | None) -> None:
        """A user of the log is about to see an item, while a reader holds this list."""
        with self._lock:
            if held is not None:
                own = item in held.items[:HITS_AMONG]
                self._comparison = Comparison(
                    self._comparison.judged + 1,
                    self._comparison.own_hits + own,
                    self._comparison.popular_hits + (item in self._unseen(user)),
                )
            self._active.append(user)
            self._see(user, item)

    def clicked(self, user: str, item: str) -> None:
        """Somebody at the page has chosen an item."""
        with self._lock:
            self._see(user, item)

    def recent(self, user: str) -> list[str]:
        """The user's last items, the newest first."""
        with self._lock:
            return list(islice(reversed(self._seen.get(user, {})), RECENT))

    def popular(self, user: str, length: int = HITS_AMONG) -> list[str]:
        """The most popular items that the user has not seen."""
        with self._lock:
            return list(islice(self._unseen(user, length), length))

    def active(self, most: int) -> list[str]:
        """Users of the log with an event lately, the busiest first."""
        with self._lock:
            newest = list(self._active)
        return sorted(set(newest), key=lambda user: (-newest.count(user), user))[:most]

    @property
    def comparison(self) -> Comparison:
        """How the lists did so far."""
        return self._comparison

    def _see(self, user: str, item: str) -> None:
        seen = self._seen[user]
        seen.pop(item, None)
        seen[item] = None

    def _unseen(self, user: str, length: int = HITS_AMONG) -> Iterator[str]:
        seen = self._seen.get(user, {})
        return islice((item for item in self._popular if item not in seen), length)
