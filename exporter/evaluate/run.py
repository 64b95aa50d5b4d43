"""One run of `exporter evaluate` or `compare`: files and bundles in, figures on the console and in files out."""

from pathlib import Path

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from exporter import dataset
from exporter.data import first_test_event
from exporter.evaluate.page import page
from exporter.evaluate.protocols import PROTOCOLS, Stream
from exporter.evaluate.report import Comparison, Evaluated, Figure, Report, Setup, compared, evaluated
from exporter.evaluate.served import Replay
from exporter.settings import CompareSettings, EvaluateSettings, LiveSettings
from stream_worker.bundle import Bundle
from stream_worker.errors import SettingsError

DEFAULT_KS = (1, 5, 10, 20)


def evaluate(settings: EvaluateSettings, console: Console) -> Report:
    """Evaluate one bundle; print and write the report.

    Raises:
        SettingsError: a k is longer than a list, too few events are kept for the model, or a file cannot be written.
        BundleError: the bundle cannot be used.
        DataError: a file is not as required, or holds no event after the cut.
    """
    (one,) = _evaluated([settings.bundle], settings, console)
    _print_report(console, one.report)
    _write(settings, one.report)
    return one.report


def compare(settings: CompareSettings, console: Console) -> Comparison:
    """Evaluate two bundles on the same events; print and write both reports and the paired differences.

    Raises:
        SettingsError, BundleError, DataError: as `evaluate`.
    """
    a, b = _evaluated([settings.a, settings.b], settings, console)
    found = compared(a, b)
    _print_comparison(console, found)
    _write(settings, found)
    return found


def _evaluated(paths: list[Path], settings: LiveSettings, console: Console) -> list[Evaluated]:
    bundles = [Bundle(path) for path in paths]
    ks = _ks(settings.ks, min(bundle.manifest.K for bundle in bundles))
    data = dataset.load(settings)
    for line in data.lines:
        console.print(line)
    setup = Setup(settings.protocol, settings.events.name, settings.history_length, ks, settings.seed, data.lines)
    cut = first_test_event(data.events.height, settings.train_share)
    places_E = None if data.sessions is None else data.sessions["place"].to_numpy()
    found = []
    for bundle in bundles:
        stream = Stream.of(data.events, cut, bundle.items.ids, places_E)
        replay = Replay(bundle, settings.history_length, settings.excluded_length)
        found.append(evaluated(setup, bundle, stream, PROTOCOLS[settings.protocol](replay, stream, console)))
    return found


def _ks(asked: str | None, longest: int) -> tuple[int, ...]:
    """The places asked for, ascending; what stands below place K of a list is not known."""
    if asked is None:
        return tuple(k for k in DEFAULT_KS if k <= longest)
    ks = sorted({int(k) for k in asked.split(",")})
    if ks[-1] > longest:
        raise SettingsError(
            f"--ks {asked}: lists have {longest} items. Ask for no more, or export with a longer --list-length."
        )
    return tuple(ks)


def _print_report(console: Console, report: Report) -> None:
    console.print(_heading(report))
    table = _table(report.bundle, "", *(f"@{k}" for k in report.ks))
    for name in dict.fromkeys(name.partition("@")[0] for name in report.metrics):
        cells = [report.metrics.get(f"{name}@{k}") for k in report.ks]
        table.add_row(name, *("" if cell is None else _cell(cell) for cell in cells))
    for name in dict.fromkeys(name.partition("@")[0] for name in report.catalogue):
        shares = [report.catalogue.get(f"{name}@{k}") for k in report.ks]
        table.add_row(name, *("" if share is None else f"{share:.3f}" for share in shares))
    console.print(table)
    slices = _table(None, f"at {report.headline}", "targets", "HR", "NDCG")
    for kind, found in report.slices.items():
        for one in found if kind != "time" else ():
            slices.add_row(f"{kind} {one.name}", f"{one.targets:,}", f"{one.hr:.3f}", f"{one.ndcg:.3f}")
    console.print(slices)
    if report.calibration:
        console.print(f"calibration error of the top score: {report.calibration.error:.3f}")
    if report.judged:
        own, default = report.judged["own"], report.judged["default"]
        k = report.headline if report.headline in own.hits else max(own.hits)
        hits, judged = own.hits[k] + default.hits[k], own.judged + default.judged
        console.print(f"the worker's own judge: {hits:,} hits at {k} of {judged:,}, {default.judged:,} by default list")


def _print_comparison(console: Console, found: Comparison) -> None:
    console.print(_heading(found.a))
    console.print(f"A {found.a.bundle}\nB {found.b.bundle}")
    table = _table(None, "", "A", "B", "B - A")
    for name, difference in found.differences.items():
        mark = " *" if difference.low > 0 or difference.high < 0 else ""
        table.add_row(name, _cell(found.a.metrics[name]), _cell(found.b.metrics[name]), _cell(difference, "+") + mark)
    for name, value in found.a.catalogue.items():
        table.add_row(name, f"{value:.3f}", f"{found.b.catalogue[name]:.3f}")
    console.print(table)
    console.print("* the 95 % interval of the paired difference leaves out 0")


def _table(title: str | None, *columns: str) -> Table:
    """Narrow enough for 80 columns."""
    return Table(*columns, title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)


def _heading(report: Report) -> str:
    return (
        f"{report.protocol} from {report.cut}: {report.lists:,} lists of {report.users:,} users, "
        f"{report.targets:,} targets; all items ranked; means and 95 % intervals over users"
    )


def _cell(figure: Figure, sign: str = "") -> str:
    """Half of the interval stands for both its ends, which JSON and HTML give."""
    return f"{figure.value:{sign}.3f} ± {(figure.high - figure.low) / 2:.3f}"


def _write(settings: LiveSettings, found: Report | Comparison) -> None:
    json = msgspec.json.format(msgspec.json.encode(found), indent=2)
    for flag, path, content in (
        ("--json", settings.json_file, json + b"\n"),
        ("--html", settings.html_file, page(found).encode()),
    ):
        if path is None:
            continue
        try:
            path.write_bytes(content)
        except OSError as error:
            raise SettingsError(f"{flag} {path}: {error.strerror}. Name a file that can be written.") from error
