"""Logs: one line for each notable thing, for people on a terminal and for machines elsewhere."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Sequence

SCRIPT = """
import logging, sys, structlog
from stream_worker import logs
logs.configure("info", sys.argv[1])
structlog.get_logger("ours").info("ready", partitions=[0, 2])
structlog.get_logger("ours").debug("not notable")
logging.getLogger("kafka.conn").warning("broker %d is\\naway", 1)
"""


def said(form: str, on_terminal: bool) -> str:
    """What a process says on its standard error."""
    command = [sys.executable, "-c", SCRIPT, form]
    if not on_terminal:
        return subprocess.run(command, check=True, capture_output=True, text=True).stderr
    ours, its = pty.openpty()
    subprocess.run(command, check=True, stderr=its)
    os.close(its)
    seen = b""
    try:
        while more := os.read(ours, 10_000):
            seen += more
    except OSError:  # Linux says EIO when nobody holds the other end
        pass
    os.close(ours)
    return seen.decode()


def plain(lines: Sequence[str]) -> list[str]:
    """Without colours."""
    return [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]


def test_elsewhere_every_line_is_json() -> None:
    ready, away = (json.loads(line) for line in said("auto", on_terminal=False).splitlines())
    assert (ready["event"], ready["partitions"], ready["level"]) == ("ready", [0, 2], "info")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", ready["timestamp"])
    assert (away["event"], away["level"]) == ("broker 1 is\naway", "warning"), "a library's line, too"


def test_on_a_terminal_lines_are_for_people() -> None:
    coloured = said("auto", on_terminal=True).splitlines()
    assert "\x1b[" in coloured[0]
    ready = plain(coloured)[0]
    assert re.search(r"\[info *\] ready +\[ours\] partitions=\[0, 2\]", ready), ready


def test_the_form_may_be_chosen() -> None:
    assert json.loads(said("json", on_terminal=True).splitlines()[0])["event"] == "ready"
    assert "\x1b" not in said("pretty", on_terminal=False)
    assert "partitions=[0, 2]" in said("pretty", on_terminal=False)
