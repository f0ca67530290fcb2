"""Figures as SVG: small functions instead of a plotting library.

The text takes the page's colours, so one figure serves light and dark; each mark keeps its number unrounded; and a run
that renders after each task does not load a plotting library.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from results.comparison import Z
from results.escape import html

WIDTH, LEFT, RIGHT = 340, 104, 46  # of a panel, in px; it is scaled to the place it has
LETTERS = 16  # of a name that fit on the left
LARGEST = 1e6  # number that is drawn


@dataclass(frozen=True)
class Point:
    """One number of a figure."""

    name: str
    value: float
    error: float | None
    """Standard error."""
    series: int
    """Chooses the colour."""
    x: float = 0.0


@dataclass(frozen=True)
class Curve:
    """A line of many points, without marks."""

    name: str
    series: int
    """Chooses the colour."""
    xs: Sequence[float]
    ys: Sequence[float]


def differences(points: Sequence[Point], low: float, high: float) -> Markup:
    """Each point beside its name, on an axis from ``low`` to ``high`` points, with its 95 % interval."""
    bottom = 22 * len(points) + 6

    def place(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)

    parts = []
    for tick in ticks(low, high):
        kind = "zero" if tick == 0 else "rule"
        parts += [f'<line class="{kind}" x1="{place(tick):.2f}" x2="{place(tick):.2f}" y1="0" y2="{bottom}"/>']
        parts += [_text(place(tick), bottom + 13, f"{tick:+g}" if tick else "0", "middle", "tick", tick)]
    for number, point in enumerate(points):
        y = 22 * number + 14
        half = None if point.error is None else Z * point.error
        parts += [_text(0, y + 4, _short(point.name), "start", "name")]
        parts += [] if half is None else [_bar(place(point.value - half), y, place(point.value + half), y, point)]
        parts += [_dot(place(point.value), y, point)]
        sure = "sure" if half is not None and abs(point.value) > half else "unsure"
        parts += [_text(WIDTH, y + 4, f"{point.value:+.1f}", "end", sure)]
    return _figure(bottom + 20, parts, "differences with 95 % intervals")


def along_epochs(
    series: Sequence[Sequence[Point]], epochs: Sequence[Sequence[float]], lines: Mapping[str, float]
) -> Markup:
    """A line for each run over its epochs, with 95 % intervals, and a dashed one for each published number.

    A line is broken where one of its run's ``epochs`` was not measured.
    """
    height, left, right = 180, 34, 92 if lines else 12
    points = [point for run in series for point in run]
    reach = [point.value + sign * Z * (point.error or 0) for point in points for sign in (-1, 1)] + list(lines.values())
    low, high = padded(min(reach), max(reach))
    first, last = min(map(min, epochs)), max(map(max, epochs))

    across, up, parts = _axes((first, last), (low, high), height, left, right)
    ceiling = 0.0
    for name, value in sorted(lines.items(), key=lambda line: -line[1]):
        y = up(value)
        ceiling = max(y + 4, ceiling + 11)  # names of close numbers stand below one another
        shown = f"{_short(name, 10)} {value:.1f}"
        parts += [
            f'<line class="published" x1="{left}" x2="{WIDTH - right}" y1="{y:.2f}" y2="{y:.2f}" '
            f'data-name="{html(name)}" data-value="{value!r}"/>',
            _text(WIDTH - right + 4, ceiling, shown, "start", "tick-name"),
        ]
    for run, own in zip(series, epochs, strict=True):
        path, before = "", None
        for point in run:
            index = own.index(point.x)
            joined = before is not None and index == before + 1
            path += f"{'L' if joined else 'M'}{across(point.x):.2f} {up(point.value):.2f}"
            before = index
        parts += [f'<path class="run s{run[0].series % 8}" d="{path}"/>'] if run else []
        for point in run:
            x, half = across(point.x), Z * (point.error or 0)
            parts += [_bar(x, up(point.value - half), x, up(point.value + half), point)] if half else []
            parts += [_dot(x, up(point.value), point, 3)]
    return _figure(height, parts, "metric against epoch")


def _axes(
    epochs: tuple[float, float], values: tuple[float, float], height: float, left: float, right: float
) -> tuple[Callable[[float], float], Callable[[float], float], list[str]]:
    """Where an epoch and a value lie, in pixels, and the ticks of both; ``left`` and ``right`` are margins."""
    (first, last), (low, high) = epochs, values

    def across(x: float) -> float:
        return left + 6 + (WIDTH - left - right - 12) * ((x - first) / (last - first) if last > first else 0.5)

    def up(value: float) -> float:
        return height - 24 - (height - 32) * (value - low) / (high - low)

    parts: list[str] = []
    for tick in ticks(low, high):
        parts += [f'<line class="rule" x1="{left}" x2="{WIDTH - right}" y1="{up(tick):.2f}" y2="{up(tick):.2f}"/>']
        parts += [_text(left - 5, up(tick) + 4, f"{tick:g}", "end", "tick", tick)]
    for tick in ticks(first, last) if last > first else [first]:
        parts += [_text(across(tick), height - 8, f"{tick:g}", "middle", "epoch", tick)]
    return across, up, parts


def curves(lines: Sequence[Curve], label: str) -> Markup:
    """Lines on common axes; each keeps its numbers in ``data-x`` and ``data-y``."""
    height, left, right = 180, 44, 12
    low, high = padded(min(min(line.ys) for line in lines), max(max(line.ys) for line in lines))
    first, last = min(min(line.xs) for line in lines), max(max(line.xs) for line in lines)

    across, up, parts = _axes((first, last), (low, high), height, left, right)
    for line in lines:
        places = [f"{across(x):.1f} {up(y):.1f}" for x, y in zip(line.xs, line.ys, strict=True)]
        xs, ys = (" ".join(map(repr, own)) for own in (line.xs, line.ys))
        end = "" if len(places) > 1 else "h.1"  # one point is a dot, by the line's round end
        parts += [
            f'<path class="run curve s{line.series % 8}" d="M{"L".join(places)}{end}" data-name="{html(line.name)}" '
            f'data-x="{xs}" data-y="{ys}"><title>{html(line.name)}</title></path>'
        ]
    return _figure(height, parts, label)


def padded(low: float, high: float) -> tuple[float, float]:
    """A range with some room on both sides, also where it is one number."""
    room = 0.06 * (high - low) or 1.0
    return low - room, high + room


def ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers in a range."""
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step = next(step * factor for factor in (5, 2, 1) if (high - low) / (step * factor) >= 3)
    return [round(number * step, 10) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _short(name: str, letters: int = LETTERS) -> str:
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def _text(x: float, y: float, text: str, anchor: str, kind: str, tick: float | None = None) -> str:
    value = "" if tick is None else f' data-tick="{tick!r}"'
    return f'<text class="{kind}" x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}"{value}>{html(text)}</text>'


def _bar(x1: float, y1: float, x2: float, y2: float, point: Point) -> str:
    series = f"s{point.series % 8}"
    return f'<line class="bar {series}" x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}"/>'


def _dot(x: float, y: float, point: Point, radius: float = 4.5) -> str:
    half = "" if point.error is None else f" ± {Z * point.error:.2f}"
    name, error = html(point.name), "" if point.error is None else repr(point.error)
    return (
        f'<circle class="dot s{point.series % 8}" cx="{x:.2f}" cy="{y:.2f}" r="{radius}" data-name="{name}" '
        f'data-value="{point.value!r}" data-error="{error}" data-x="{point.x:g}">'
        f"<title>{name}: {point.value:.2f}{half}</title></circle>"
    )


def _figure(height: int, parts: Sequence[str], label: str) -> Markup:
    return Markup(f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>')


def can_be_drawn(value: float, error: float | None) -> bool:
    """Whether it is of a percentage's order: a record may hold any finite number, on which no axis is made."""
    return abs(value) < LARGEST and abs(error or 0) < LARGEST
