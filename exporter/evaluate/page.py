"""The report as one HTML file: nothing is loaded from elsewhere, light or dark as the reader's system is."""

from collections.abc import Iterable, Sequence
from html import escape

from exporter.evaluate.report import Comparison, Figure, Report
from exporter.evaluate.slices import Slice
from exporter.evaluate.svg import Bar, Series, bars, lines

STYLE = """
:root{color-scheme:light dark;--ink:#1c2330;--dim:#5b6675;--paper:#fff;--rule:#d9dee5;--s0:#2563c9;--s1:#c2600a}
@media(prefers-color-scheme:dark){
:root{--ink:#e6eaf0;--dim:#9aa6b5;--paper:#14181f;--rule:#323a46;--s0:#6ea8ff;--s1:#ffa552}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper)}
body{max-width:1000px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}p{color:var(--dim);max-width:48rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .8rem .2rem 0;text-align:right;border-bottom:1px solid var(--rule)}
th:first-child,td:first-child{text-align:left}small,.dim{color:var(--dim)}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(340px,1fr));gap:1rem}figure{margin:0}
figcaption{font-weight:600}svg{width:100%;height:auto}svg text{font-size:11px;fill:var(--dim)}
.grid{stroke:var(--rule)}.line{fill:none;stroke-width:2}.guide{fill:none;stroke:var(--dim);stroke-dasharray:4 4}
.line.s0{stroke:var(--s0)}.line.s1{stroke:var(--s1)}.bar.s0,.key.s0{fill:var(--s0);background:var(--s0)}
.bar.s1,.key.s1{fill:var(--s1);background:var(--s1)}.key{display:inline-block;width:.8em;height:.8em;margin-right:.4em}
.scroll{overflow-x:auto}
"""

SLICES = {
    "activity": ("By activity", "Events of the user before the list"),
    "item_age": ("By item age", "Time since the item's first event"),
    "item_warmth": ("Cold items", "No event before the cut"),
    "list": ("By list", "Whether the user had a list yet"),
    "session": ("By place in the session", "Events of the session so far"),
}


def page(found: Report | Comparison) -> str:
    """The whole file."""
    reports = [found] if isinstance(found, Report) else [found.a, found.b]
    differences = None if isinstance(found, Report) else found.differences
    first = reports[0]
    names = " and ".join(report.bundle for report in reports)
    intro = (
        f"{first.protocol} on {first.events} from {first.cut} on: {first.lists:,} lists for {first.users:,} users, "
        f"{first.targets:,} targets; every item of the catalogue is ranked, none sampled. "
        "Intervals are 95 %, by resampling users."
    )
    body = [
        f"<h1>{escape(names)}</h1><p>{escape(intro)}</p>",
        _legend(reports),
        "<h2>Accuracy and beyond</h2>",
        _metrics(reports, differences),
        f'<div class="plots">{"".join(_plots(reports))}</div>',
        f"<h2>Slices, at {first.headline}</h2>",
        _slice_table(reports),
        *(_judged(report) for report in reports if report.judged),
        "<h2>Data</h2>",
        "<p>" + "<br>".join(escape(line) for line in first.cleaning) + "</p>",
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(names)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{STYLE}</style></head>'
        f"<body>{''.join(body)}</body></html>\n"
    )


def _legend(reports: Sequence[Report]) -> str:
    keys = (f'<span class="key s{n}"></span>{escape(report.bundle)}&emsp;' for n, report in enumerate(reports))
    return f"<p>{''.join(keys)}</p>" if len(reports) > 1 else ""


def _metrics(reports: Sequence[Report], differences: dict[str, Figure] | None) -> str:
    head = ["", *(report.bundle for report in reports), *(["B less A"] if differences else [])]
    rows = []
    for name in dict.fromkeys(name for report in reports for name in report.metrics):
        cells = [_figure(report.metrics.get(name)) for report in reports]
        rows.append([escape(name), *cells, *([_figure(differences.get(name), "+")] if differences else [])])
    for name in reports[0].catalogue:
        cells = [f"{report.catalogue[name]:.4f}" for report in reports]
        rows.append([escape(name), *cells, *(["&ndash;"] if differences else [])])
    return _table([escape(text) for text in head], rows)


def _figure(figure: Figure | None, sign: str = "") -> str:
    if figure is None:
        return "&ndash;"
    ends = f"{figure.low:{sign}.4f} to {figure.high:{sign}.4f}"
    return f"{figure.value:{sign}.4f} <small>{ends}</small>"


def _plots(reports: Sequence[Report]) -> Iterable[str]:
    first = reports[0]
    if len(first.ks) > 1:
        for name, label in (("hr", "Hit rate at k"), ("ndcg", "NDCG at k")):
            curves = [Series(r.bundle, [(k, r.metrics[f"{name}@{k}"].value) for k in r.ks]) for r in reports]
            yield _plot(label, lines(label, curves, "k"))
    label = f"Hit rate at {first.headline} over time"
    curves = [Series(r.bundle, [(n, one.hr) for n, one in enumerate(r.slices["time"]) if one.targets]) for r in reports]
    times = (first.slices["time"][0].name[:10], first.slices["time"][-1].name[:10])
    yield _plot(label, lines(label, curves, "beginning of the period", times))
    for key, (label, axis) in SLICES.items():
        groups = [one.name for one in first.slices[key]]
        if not groups:
            continue
        series = [[Bar(one.hr, _note(r, one)) for one in r.slices[key]] for r in reports]
        yield _plot(f"{label}: hit rate at {first.headline}", bars(label, groups, series), axis)
    curves = [Series(r.bundle, list(enumerate(r.lorenz))) for r in reports]
    even = Series("all alike", [(0, 0), (100, 1)], guide=True)
    axis = "% of the items, least shown first"
    yield _plot("Share of the places on lists", lines("Lorenz curve", [*curves, even], axis))
    curves = [
        Series(r.bundle, [(group.confidence, group.accuracy) for group in r.calibration.groups])
        for r in reports
        if r.calibration
    ]
    if curves:
        end = max(x for one in curves for x, _ in one.points)
        ideal = Series("calibrated", [(0, 0), (end, end)], guide=True)
        yield _plot("Calibration of the top score", lines("Calibration", [*curves, ideal], "softmax of the first item"))


def _plot(title: str, svg: str, note: str = "") -> str:
    small = f"<br><small>{escape(note)}</small>" if note else ""
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}{small}</figure>"


def _note(report: Report, one: Slice) -> str:
    return f"{report.bundle}, {one.name}: {one.hr:.4f} of {one.targets:,} targets"


def _slice_table(reports: Sequence[Report]) -> str:
    head = ["", "targets"]
    head += [f"{name}, {report.bundle}" if len(reports) > 1 else name for report in reports for name in ("HR", "NDCG")]
    rows = []
    for key, (label, _) in SLICES.items():
        for place, one in enumerate(reports[0].slices[key]):
            parts = [report.slices[key][place] for report in reports]
            figures = [f"{value:.4f}" for part in parts for value in (part.hr, part.ndcg)]
            rows.append([escape(f"{label}: {one.name}"), f"{one.targets:,}", *figures])
    return _table([escape(text) for text in head], rows)


def _judged(report: Report) -> str:
    rows = [
        [name, f"{one.judged:,}", *(f"{hits:,}" for hits in one.hits.values())] for name, one in report.judged.items()
    ]
    ks = next(iter(report.judged.values())).hits
    head = ["list", "judged", *(f"hits at {k}" for k in ks)]
    return f"<h2>The worker's own judge, {escape(report.bundle)}</h2>{_table(head, rows)}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
