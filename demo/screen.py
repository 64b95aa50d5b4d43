"""What the demo prints, as pure functions of figures: within 100 columns, readable without a manual."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.latency import quantile
from demo.scrape import Quality
from demo.settings import ROOT
from stream_worker.messages import TopK

LABEL = 14
TITLES = 5
WIDTH = 100

LEGEND = (
    "event-to-list: ms from sending an event to reading the list that it caused, over the last second.",
    "HR@10: the share of the events so far whose item was among the first ten of the list that was published",
    "before the event: the user's own list, or, for users who had none yet, the default list for everybody.",
)
HEADER = (
    "                                      event-to-list            own list        default list",
    "  time  events/s   lists/s   users      p50      p99     HR@10   judged     HR@10   judged",
)


@dataclass(frozen=True)
class Second:
    """One line: what happened in the last second, and quality so far."""

    time_s: float
    events: float  # a second
    lists: float  # a second
    users: int  # with a list so far
    waits: Sequence[float]  # seconds
    own: Quality
    default: Quality


def line(second: Second) -> str:
    """One second as a line under HEADER."""
    minutes, seconds = divmod(round(second.time_s), 60)
    return (
        f"{minutes:3d}:{seconds:02d}{second.events:10.0f}{second.lists:10.0f}{second.users:8,d}"
        f"{milliseconds(quantile(second.waits, 0.5)):>9}{milliseconds(quantile(second.waits, 0.99)):>9}"
        f"{_quality(second.own)}{_quality(second.default)}"
    )


def labelled(label: str, *texts: str) -> str:
    """Lines with their label before the first."""
    return "\n".join(f"{label if not number else '':{LABEL}} {text}" for number, text in enumerate(texts))


def share(rate: float | None) -> str:
    """A hit rate."""
    return "-" if rate is None else f"{rate:.3f}"


def milliseconds(seconds: float | None) -> str:
    """A wait, in ms: one digit behind the point below 100."""
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.1f}" if seconds < 0.1 else f"{seconds * 1000:,.0f}"


def quantiles(p50: float | None, p99: float | None) -> str:
    """p50 and p99 in words."""
    return f"p50 {milliseconds(p50)} ms, p99 {milliseconds(p99)} ms"


def how_to_watch(bootstrap: str, events: str, recommendations: str, http_port: int, item: str, pid: int) -> str:
    """What to type in another terminal while it runs."""
    broker = bootstrap.split(",")[0]
    event = f"""'me={{"user":"me","item":"{item}"}}'"""
    return commands(
        {
            f"kcat -b {broker} -t {recommendations} -C -o end -q": "lists, as they are published",
            f"echo {event} | kcat -b {broker} -t {events} -P -K=": "an event of yours",
            f"curl -s localhost:{http_port}/metrics": "what a worker measures",
            f"kill -9 {pid}": "its users move to worker 1",
        }
    )


def commands(shows: Mapping[str, str]) -> str:
    """Commands and what each shows, in two columns."""
    width = max(map(len, shows))
    return "\n".join(f"  {command:{width}}  # {text}" for command, text in shows.items())


def example(found: TopK, titles: dict[str, str]) -> list[str]:
    """The head of one list, with titles where they are known."""
    names = [titles.get(item, item) for item in found.items[:TITLES]]
    lines = textwrap.wrap(" · ".join(names) + " …", WIDTH - LABEL - 1)
    return [f"user {found.user} after {found.events} events:", *lines]


def short(path: Path) -> str:
    """A path as one would type it in the repository."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def _quality(quality: Quality) -> str:
    return f"{share(quality.hit_rate):>10}{quality.judged:9,d}"
