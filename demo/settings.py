"""The demo's knobs: each is an environment variable, so that `make demo RATE=500` works, and a flag.

Standard library only: demo/preflight.py reads them before there is an environment.
"""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from stream_worker.errors import SettingsError

ROOT = Path(__file__).resolve().parents[1]
WORKERS = 2


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (0 < number < math.inf):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def _seconds(text: str) -> float:
    return 0.0 if text.strip() == "0" else _positive(text)


def _whole(lowest: int, highest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and lowest <= int(text) <= highest):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {lowest} to {highest}")
        return int(text)

    return parse


def _address(text: str) -> str:
    for one in text.split(","):
        host, _, port = one.strip().rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise argparse.ArgumentTypeError(f"{one!r} is not host:port")
    return text


@dataclass(frozen=True)
class Knob:
    """One setting: its field, its variable, how to read it, and what `--help` says."""

    name: str
    parse: Callable[[str], Any]
    default: object
    help: str
    example: str
    variable: str = ""

    @property
    def environment(self) -> str:
        """The environment variable."""
        return self.variable or self.name.upper()


KNOBS = (
    Knob("rate", _positive, 200.0, "events a second; 200", "200"),
    Knob("duration", _seconds, None, "seconds of replay; 0: until Ctrl-C; without it, until the events end", "30"),
    Knob("bootstrap", _address, None, "use this broker instead of starting one", "localhost:9092"),
    Knob("seed", _whole(0, 2**63 - 1), 0, "of the training; 0", "0"),
    Knob("kafka_port", _whole(1, 65535), 9092, "port of the broker that is started; 9092", "9092"),
    Knob("http_port", _whole(1, 65535 - WORKERS), 9101, "port of worker 1, worker 2 takes the next; 9101", "9101"),
    Knob("page_port", _whole(1, 65535), 9180, "port of the live page; 9180", "9180"),
    Knob("model", str, "hybrid", "a model of docs/models.md; hybrid", "two-tower", "DEMO_MODEL"),
    Knob("events", Path, None, "your events instead of MovieLens 100k", "events.parquet", "DEMO_EVENTS"),
    Knob("items", Path, None, "their items", "items.parquet", "DEMO_ITEMS"),
    Knob("directory", Path, ROOT / ".demo", "for models, logs and Kafka's data; .demo", "/tmp/demo", "DEMO_DIR"),  # noqa: S108
)


@dataclass(frozen=True)
class DemoSettings:
    """What the user has chosen; see `KNOBS`."""

    rate: float
    duration: float | None
    bootstrap: str | None
    seed: int
    kafka_port: int
    http_port: int
    page_port: int
    model: str
    events: Path | None
    items: Path | None
    directory: Path

    @property
    def http_ports(self) -> list[int]:
        """One for each worker."""
        return [self.http_port + number for number in range(WORKERS)]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}. See `python -m demo --help`.")


def parse_settings(argv: Sequence[str], environ: Mapping[str, str]) -> DemoSettings:
    """Settings from flags, then environment, then defaults. `--help` prints and exits 0.

    Raises:
        SettingsError: a flag is unknown, or a value is not what it should be; in one line.
    """
    parser = _Parser(prog="python -m demo", description="Train, stream and watch, on this machine.", allow_abbrev=False)
    for knob in KNOBS:
        flag = f"--{knob.name.replace('_', '-')}"
        text = f"{knob.help} ({knob.environment})"
        parser.add_argument(
            flag, type=knob.parse, metavar=knob.name.upper(), help=text, default=_default(knob, environ)
        )
    return DemoSettings(**vars(parser.parse_args(argv)))


def _default(knob: Knob, environ: Mapping[str, str]) -> object:
    text = environ.get(knob.environment)
    if not text:  # empty, as from `make demo RATE=`, counts as none
        return knob.default
    try:
        return knob.parse(text)
    except argparse.ArgumentTypeError as error:
        raise SettingsError(f"{knob.environment}: {error}; for example: {knob.environment}={knob.example}") from None
