"""What `stream-worker doctor` found, and the table of it."""

import os
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TextIO

from stream_worker.errors import DataError, StreamWorkerError

WIDTH = 120  # of the table where there is no terminal
COLOURS = {"fine": "32", "unwise": "33", "wrong": "31", "skipped": "2"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: it.
        text: what was found; of what is not fine also the mend.
        state: `unwise` works, and yet should be mended; `skipped` could not be looked at.
        exit_code: of the process, if it is wrong.
    """

    what: str
    text: str
    state: Literal["fine", "unwise", "wrong", "skipped"] = "fine"
    exit_code: int = 0

    @classmethod
    def of(cls, what: str, error: StreamWorkerError) -> "Finding":
        """What a worker would end with; a broker that is away counts as topics that are not as required."""
        return cls(what, str(error), "wrong", DataError.exit_code if error.retriable else error.exit_code)


def exit_code(findings: Sequence[Finding]) -> int:
    """That of the first thing that is wrong; 0 if nothing is."""
    return next((finding.exit_code for finding in findings if finding.state == "wrong"), 0)


def table(findings: Sequence[Finding], out: TextIO) -> str:
    """A row a finding, and the sum of them; in colour on a terminal."""
    terminal = out.isatty()
    coloured = terminal and "NO_COLOR" not in os.environ
    width = shutil.get_terminal_size().columns if terminal else WIDTH
    column = max(len(finding.what) for finding in findings) + 2
    lines = []
    for finding in findings:
        state = f"{finding.state:9}"
        margin = " " * (len(state) + column)
        text = textwrap.fill(
            finding.text, max(width, len(margin) + 40), initial_indent=margin, subsequent_indent=margin,
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
        if coloured:
            state = f"\x1b[{COLOURS[finding.state]}m{state}\x1b[0m"
        lines.append(f"{state}{finding.what:{column}}{text[len(margin) :]}\n")
    return "".join(lines) + f"\n{_sum(findings)}\n"


def _sum(findings: Sequence[Finding]) -> str:
    states = [finding.state for finding in findings]
    counts = [f"{states.count(state)} {state}" for state in ("wrong", "unwise", "skipped") if state in states]
    return ", ".join([*counts, f"{states.count('fine')} fine"]) if counts else f"all {len(findings)} fine"
