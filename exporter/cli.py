"""The exporter's commands: the only place of the trainer that wires objects and prints."""

import signal
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from pydantic_settings import BaseSettings
from rich.console import Console

from exporter.settings import (
    CompareSettings,
    EmbedSettings,
    EvaluateSettings,
    QuantizeSettings,
    TrainSettings,
    VerifySettings,
)
from stream_worker import logs
from stream_worker.errors import SettingsError, StreamWorkerError
from stream_worker.settings import parse_arguments

USAGE = """usage: exporter COMMAND [flags]

commands:
  train    train a model on a file of events, evaluate it, and write a bundle
  verify   check a bundle: its hashes, its graph, and the lists of its example
  evaluate judge the lists of a bundle, made by the worker's own code
  compare  judge two bundles on the same events
  quantize write a bundle anew in 8 bits, or with 16-bit items, and say what that changes
  embed    add the vectors of a text encoder to an items file

`exporter COMMAND --help` lists the flags."""
INTERRUPTED = "exporter: interrupted, nothing is written"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code of stream_worker/errors.py; a user's mistake is one line on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    if argv is None:  # the process is ours; Kubernetes ends a Job by SIGTERM
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _dispatch(arguments, console)
    except StreamWorkerError as error:
        print(f"exporter: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        resume = "; `train --resume` goes on after the last pass" if arguments[:1] == ["train"] else ""
        print(f"{INTERRUPTED}{resume}", file=sys.stderr)  # noqa: T201
        return 130


def train(settings: TrainSettings, console: Console) -> None:
    """Load, train, evaluate, export."""
    # Not at the top: torch takes seconds to import, which --help and a mistyped flag need not wait for.
    from exporter import device
    from exporter.experiment import load, run
    from exporter.folds import cross_validate
    from exporter.models import find

    find(settings.model)
    device.chosen(settings.device, settings.bf16)
    out = settings.out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--out {out}: {error.strerror}. Name a directory that can be written.") from error
    experiment = load(settings, console)
    if settings.folds and not settings.resume:  # they came before what is resumed
        cross_validate(settings, console)
    try:
        bundle = run(experiment, settings, lambda: datetime.now(UTC), console)
    except OSError as error:
        raise SettingsError(f"--out {out}: {error.strerror}. Name a directory that can be written.") from error
    console.print(f"bundle: {bundle}")


def verify(settings: VerifySettings, console: Console) -> None:
    """Check a bundle as a worker does, and its example's lists besides."""
    from exporter.verification import checks

    for line in checks(settings.bundle):
        console.print(f"OK   {line}")


def evaluate(settings: EvaluateSettings, console: Console) -> None:
    """Replay a file of events through a worker in memory, and judge the bundle's lists."""
    from exporter.evaluate import run

    logs.configure("error", "auto")  # that worker's own: rebalances and restores of a log in memory
    run.evaluate(settings, console)


def compare(settings: CompareSettings, console: Console) -> None:
    """Judge two bundles, and how sure their difference is."""
    from exporter.evaluate import run

    logs.configure("error", "auto")
    run.compare(settings, console)


def quantize(settings: QuantizeSettings, console: Console) -> None:
    """Write a bundle anew in 8 bits, unless its lists get worse."""
    from exporter.quantize import run

    bundle = run(settings, lambda: datetime.now(UTC), console)
    console.print(f"bundle: {bundle}")


def embed(settings: EmbedSettings, console: Console) -> None:
    """Add a column of text vectors to an items file."""
    from exporter.embed import run

    run(settings, console)


COMMANDS: dict[str, tuple[type[BaseSettings], Callable[..., None]]] = {
    "train": (TrainSettings, train),
    "verify": (VerifySettings, verify),
    "evaluate": (EvaluateSettings, evaluate),
    "compare": (CompareSettings, compare),
    "quantize": (QuantizeSettings, quantize),
    "embed": (EmbedSettings, embed),
}


def _dispatch(arguments: list[str], console: Console) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        console.print(USAGE)
        return 0 if arguments else SettingsError.exit_code
    command, *rest = arguments
    if command not in COMMANDS:
        raise SettingsError(f"{command!r} is no command. There are {', '.join(COMMANDS)}. See `exporter --help`.")
    settings_class, run = COMMANDS[command]
    run(parse_arguments(settings_class, rest, f"exporter {command}"), console)
    return 0
