"""The chart: how long an ADD takes with more and more ports and leases, as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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
_COLOURS: Final = {REFERENCE: "#c2571a", ALONE: "#7d8795", AGENT: "#2f6fb8"}
_WIDTH, _HEIGHT = 880, 420
_LEFT, _TOP, _PLOT_WIDTH, _PLOT_HEIGHT, _STEP = 64, 78, 350, 250, 430
_LEGEND_STEP = 138
_LABEL = 34
# Milliseconds at the bottom and at the top of both plots.
_LOWEST, _HIGHEST = 1.0, 1000.0


class _Point(NamedTuple):
    x: float
    row: Row
    column: str

    @property
    def value(self) -> float:
        return self.row.median(self.column)

    @property
    def y(self) -> float:
        return _y(self.value)

    @property
    def colour(self) -> str:
        return _COLOURS[self.column]


def draw(rows: Sequence[Row]) -> str:
    """Two plots side by side, with the same logarithmic milliseconds."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="DejaVu Sans, Helvetica, Arial, sans-serif" font-size="13" fill="#1c2530">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="26" font-size="16" font-weight="bold">ADD: median milliseconds</text>',
    ]
    for number, axis in enumerate(_TITLES):
        of_axis = [(row.place, row) for row in rows if row.place is not None and row.place.axis == axis]
        parts += _plot(axis, of_axis, _LEFT + number * _STEP)
    return "\n".join([*parts, "</svg>", ""])


def _plot(axis: str, rows: Sequence[tuple[Place, Row]], left: float) -> Iterable[str]:
    bottom = _TOP + _PLOT_HEIGHT
    yield f'<text x="{left}" y="{_TOP - 22}" font-weight="bold">{_TITLES[axis]}</text>'
    for value in _decades():
        y = _y(value)
        yield f'<path d="M{left} {y:.1f}h{_PLOT_WIDTH}" stroke="#dfe4ea" fill="none"/>'
        yield _text(left - 8, y + 4, f"{value:g}", "end")
    counts = [place.at for place, _ in rows]
    places = {
        count: left + _PLOT_WIDTH * (index + 0.35) / max(len(counts) - 0.1, 1)
        for index, count in enumerate(counts)
    }
    for count, x in places.items():
        yield f'<path d="M{x:.1f} {bottom}v5" stroke="#3a4657"/>'
        yield _text(x, bottom + 20, f"{count:,}")
    yield f'<path d="M{left} {_TOP}V{bottom}h{_PLOT_WIDTH}" stroke="#3a4657" fill="none"/>'
    yield _text(left + _PLOT_WIDTH / 2, bottom + 40, f"{axis} (steps are not to scale)")
    for number, (column, colour) in enumerate(_COLOURS.items()):
        x = left - 20 + number * _LEGEND_STEP
        yield f'<circle cx="{x}" cy="{bottom + 68}" r="4" fill="{colour}"/>'
        yield _text(x + 9, bottom + 72, _NAMES[axis][column], "start")
        yield from _line([_Point(places[place.at], row, column) for place, row in rows if _has(row, column)])
    for place, row in rows:
        yield from _labels(
            [_Point(places[place.at], row, column) for column in _COLOURS if _has(row, column)]
        )


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


def _decades() -> list[float]:
    return [10.0**power for power in range(round(math.log10(_LOWEST)), round(math.log10(_HIGHEST)) + 1)]


def _y(value: float) -> float:
    share = math.log10(max(value, _LOWEST) / _LOWEST) / math.log10(_HIGHEST / _LOWEST)
    return _TOP + _PLOT_HEIGHT * (1 - share)
