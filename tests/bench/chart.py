"""The chart: how long an ADD takes with more and more ports and leases, as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from tests.bench.report import Place, Row
from tests.bench.systems import AGENT, ALONE, REFERENCE

_TITLES: Final = {
    "ports": "macspoofchk ADD, by ports on the node",
    "leases": "address ADD, by leases given out",
}
_NAMES: Final = {
    "ports": {REFERENCE: "bridge v1.9.1", ALONE: "cnv-bridge alone", AGENT: "cnv-bridge, agent"},
    "leases": {REFERENCE: "host-local v1.9.1", ALONE: "static-ip alone", AGENT: "static-ip, agent"},
}
# How far to the right a number is, in any unit, and the words below the axis. Leases begin with none, which
# a logarithm has no place for.
_SCALES: Final[dict[str, Callable[[int], float]]] = {
    "ports": float,
    "leases": lambda count: math.log10(1 + count / 10_000),
}
_AXES: Final = {
    "ports": "guarded ports",
    "leases": "leases (logarithmic above 10,000)",
}
_COLOURS: Final = {REFERENCE: "#b34a10", ALONE: "#5d6776", AGENT: "#2563ab"}
_WIDTH, _HEIGHT = 900, 420
_LEFT, _TOP, _PLOT_WIDTH, _PLOT_HEIGHT, _STEP = 84, 78, 345, 250, 430
_MARGIN = 22
_LEGEND_STEP = 138
_LABEL = 34


class _Point(NamedTuple):
    x: float
    y: float
    value: float
    column: str

    @property
    def colour(self) -> str:
        return _COLOURS[self.column]


class _Decades(NamedTuple):
    """The logarithmic axis of milliseconds, from one power of ten to another."""

    lowest: int
    highest: int

    @classmethod
    def around(cls, values: Sequence[float]) -> _Decades:
        lowest = math.floor(math.log10(min(values, default=1)))
        return cls(lowest, max(lowest + 1, math.ceil(math.log10(max(values, default=10)))))

    def y(self, value: float) -> float:
        share = (math.log10(value) - self.lowest) / (self.highest - self.lowest)
        return _TOP + _PLOT_HEIGHT * (1 - share)


def draw(rows: Sequence[Row]) -> str:
    """Two plots side by side, with the same logarithmic milliseconds."""
    placed = [(row.place, row) for row in rows if row.place is not None]
    decades = _Decades.around([row.median(column) for _, row in placed for column in _COLOURS])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="DejaVu Sans, Helvetica, Arial, sans-serif" font-size="13" fill="#1c2530">',
        # A ground of its own: the text is as readable on a dark page.
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" rx="6" fill="#fff"/>',
        f'<text x="{_LEFT}" y="28" font-size="16" font-weight="bold">How long an ADD takes</text>',
    ]
    for number, axis in enumerate(_TITLES):
        of_axis = [(place, row) for place, row in placed if place.axis == axis]
        parts += _plot(axis, of_axis, decades, _LEFT + number * _STEP)
    return "\n".join([*parts, "</svg>", ""])


def _plot(axis: str, rows: Sequence[tuple[Place, Row]], decades: _Decades, left: float) -> Iterable[str]:
    bottom = _TOP + _PLOT_HEIGHT
    yield f'<text x="{left}" y="{_TOP - 22}" font-weight="bold">{_TITLES[axis]}</text>'
    for power in range(decades.lowest, decades.highest + 1):
        y = decades.y(10.0**power)
        yield f'<path d="M{left} {y:.1f}h{_PLOT_WIDTH}" stroke="#dfe4ea" fill="none"/>'
        yield _text(left - 8, y + 4, f"{10.0**power:,g}", "end")
    middle = _TOP + _PLOT_HEIGHT / 2
    yield (
        f'<text transform="translate({left - 52},{middle}) rotate(-90)" text-anchor="middle" font-size="12" '
        'fill="#4b5666">milliseconds, median (logarithmic)</text>'
    )
    places = _places(axis, [place.at for place, _ in rows], left)
    for count, x in places.items():
        yield f'<path d="M{x:.1f} {bottom}v5" stroke="#3a4657"/>'
        yield _text(x, bottom + 20, f"{count:,}")
    yield f'<path d="M{left} {_TOP}V{bottom}h{_PLOT_WIDTH}" stroke="#3a4657" fill="none"/>'
    yield _text(left + _PLOT_WIDTH / 2, bottom + 40, _AXES[axis])
    points = [
        [
            _Point(places[place.at], decades.y(row.median(column)), row.median(column), column)
            for column in _COLOURS
            if _has(row, column)
        ]
        for place, row in rows
    ]
    for number, (column, colour) in enumerate(_COLOURS.items()):
        x = left - 20 + number * _LEGEND_STEP
        yield f'<circle cx="{x}" cy="{bottom + 68}" r="4" fill="{colour}"/>'
        yield _text(x + 9, bottom + 72, _NAMES[axis][column], "start")
        yield from _line([point for each in points for point in each if point.column == column])
    for each in points:
        yield from _labels(each)


def _places(axis: str, counts: Sequence[int], left: float) -> dict[int, float]:
    scale = _SCALES[axis]
    longest = max(map(scale, counts), default=0) or 1
    width = _PLOT_WIDTH - 2 * _MARGIN
    return {count: left + _MARGIN + width * scale(count) / longest for count in counts}


def _has(row: Row, column: str) -> bool:
    """Whether a column of the row was measured with what the row is about."""
    return column != REFERENCE or (row.place is not None and row.place.reference_at == row.place.at)


def _line(points: Sequence[_Point]) -> Iterable[str]:
    if not points:
        return
    path = " ".join(f"{point.x:.1f},{point.y:.1f}" for point in points)
    yield f'<polyline points="{path}" fill="none" stroke="{points[0].colour}" stroke-width="2.2"/>'
    for point in points:
        yield f'<circle cx="{point.x:.1f}" cy="{point.y:.1f}" r="3.6" fill="{point.colour}"/>'


def _labels(points: Sequence[_Point]) -> Iterable[str]:
    """Above their points, or below where another point is in the way."""
    above = -math.inf
    for point in sorted(points, key=lambda point: point.y):
        y = point.y - 9 if point.y - above > _LABEL else point.y + 19
        yield _text(point.x, y, f"{point.value:.{0 if point.value >= 100 else 1}f}", colour=point.colour)
        above = point.y


def _text(x: float, y: float, content: str, anchor: str = "middle", colour: str = "#4b5666") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="12" fill="{colour}">{content}</text>'
