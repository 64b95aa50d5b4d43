"""Small plots as SVG text: no library, no script; colours come from the page's style, so that it can be dark."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 44
TICKS = 4


class Series(NamedTuple):
    """A line: its name, its points, and whether it is only a guide to the eye."""

    name: str
    points: Sequence[tuple[float, float]]
    guide: bool = False


class Bar(NamedTuple):
    """A value for a group, beside those of other series, and what to say when the mouse is on it."""

    value: float
    note: str


def lines(title: str, series: Sequence[Series], x_axis: str, x_names: tuple[str, str] | None = None) -> str:
    """Lines over numbers; `x_names` replaces the numbers at both ends of the x axis."""
    every = [point for one in series for point in one.points]
    low, high = min(x for x, _ in every), max(x for x, _ in every)
    top = _top(max(y for _, y in every))
    span = (high - low) or 1.0

    def place(point: tuple[float, float]) -> str:
        x = LEFT + (point[0] - low) / span * (WIDTH - LEFT - RIGHT)
        return f"{x:.1f},{_y(point[1], top):.1f}"

    parts = [_grid(top)]
    for number, one in enumerate(series):
        style = "guide" if one.guide else f"line s{number}"
        path = " ".join(place(point) for point in one.points)
        parts.append(f'<polyline class="{style}" points="{path}"><title>{escape(one.name)}</title></polyline>')
    ends = x_names or (f"{low:g}", f"{high:g}")
    parts.append(_text(LEFT, HEIGHT - BOTTOM + 16, ends[0], "start"))
    parts.append(_text(WIDTH - RIGHT, HEIGHT - BOTTOM + 16, ends[1], "end"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_axis, "middle"))
    return _svg(title, parts)


def bars(title: str, groups: Sequence[str], series: Sequence[Sequence[Bar]]) -> str:
    """Groups of bars, one a series."""
    top = _top(max((bar.value for one in series for bar in one), default=0))
    room = (WIDTH - LEFT - RIGHT) / max(1, len(groups))
    width = min(46.0, 0.8 * room / max(1, len(series)))
    parts = [_grid(top)]
    for place, group in enumerate(groups):
        middle = LEFT + (place + 0.5) * room
        parts.append(_text(middle, HEIGHT - BOTTOM + 16, group, "middle"))
        for number, one in enumerate(series):
            x = middle + (number - len(series) / 2) * width
            y = _y(one[place].value, top)
            parts.append(
                f'<rect class="bar s{number}" x="{x:.1f}" y="{y:.1f}" width="{width - 2:.1f}" '
                f'height="{HEIGHT - BOTTOM - y:.1f}"><title>{escape(one[place].note)}</title></rect>'
            )
    return _svg(title, parts)


def _svg(title: str, parts: Sequence[str]) -> str:
    inside = "".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{inside}</svg>'


def _grid(top: float) -> str:
    rows = []
    for tick in range(TICKS + 1):
        value = top * tick / TICKS
        y = _y(value, top)
        rows.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        rows.append(_text(LEFT - 6, y + 4, f"{value:.3g}", "end"))
    return "".join(rows)


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)


def _top(highest: float) -> float:
    """A round number at or above the highest value."""
    if highest <= 0:
        return 1.0
    power = 10.0 ** (len(f"{int(1 / highest)}") * -1 if highest < 1 else len(str(int(highest))) - 1)
    return next(power * step for step in (1, 2, 4, 6, 8, 10, 20, 100) if power * step >= highest * 0.9999)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
