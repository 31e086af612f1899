"""Charts as SVG: groups of bars side by side, and curves over two logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

# Greys, a pair of blues and so on: neighbours differ in lightness, for print and for all eyes.
COLOURS = ("#9aa3ad", "#5b6672", "#f0b35a", "#cf7f1e", "#1f5fa8", "#7fb2e5", "#c9ced4")
# For lines and letters on white.
DARK = ("#1f5fa8", "#b3541e", "#2f7d4f", "#7a4fa3", "#5b6672", "#a8324a", "#8a6d00")
HEIGHT = 300
LEFT = 46
TOP = 58
BOTTOM = 34
BAR = 26
GAP = 34
PLOT = 520
"""Width of a plot of curves."""


@dataclass(frozen=True)
class Chart:
    """`values[series][group]` between 0 and 1; a series may lack a group."""

    title: str
    groups: Sequence[str]
    values: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Curves:
    """`series` are points by name, both coordinates above 0; their units belong in the name."""

    title: str
    axis: str
    series: Mapping[str, Sequence[tuple[float, float]]]


def svg(chart: Chart) -> str:
    """The chart as a document of its own, on white, whatever page it is shown on."""
    group_width = BAR * len(chart.values) + GAP
    plot = group_width * len(chart.groups)
    legend = sum(_legend_width(series) for series in chart.values)
    width = LEFT + max(plot, legend) + 16
    lines = [*_frame(chart.title, width, TOP + HEIGHT + BOTTOM), *_legend(chart), *_grid(plot)]
    for place, group in enumerate(chart.groups):
        lines += _bars(chart, group, LEFT + place * group_width + GAP / 2)
    return "\n".join([*lines, "</svg>", ""])


def curves(chart: Curves) -> str:
    """The curves as a document of its own, each with its name at its right end."""
    points = [point for found in chart.series.values() for point in found]
    x, y = (_Axis.of([point[place] for point in points]) for place in (0, 1))
    names = max(map(len, chart.series))
    lines = _frame(chart.title, LEFT + PLOT + 24 + 7 * names, TOP + HEIGHT + BOTTOM + 20)
    for power in range(x.first, x.last + 1):
        place = LEFT + PLOT * x.share(10.0**power)
        lines += [
            f'<path d="M{place:.0f} {TOP}v{HEIGHT}" stroke="#d8dee4"/>',
            f'<text x="{place:.0f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">'
            f"{10**power:,}</text>",
        ]
    for power in range(y.first, y.last + 1):
        place = TOP + HEIGHT * (1 - y.share(10.0**power))
        lines += [
            f'<path d="M{LEFT} {place:.0f}h{PLOT}" stroke="#d8dee4"/>',
            f'<text x="{LEFT - 6}" y="{place + 4:.0f}" text-anchor="end">{10.0**power:,g}</text>',
        ]
    lines.append(
        f'<text x="{LEFT + PLOT / 2:.0f}" y="{TOP + HEIGHT + 40}" text-anchor="middle"'
        f' font-weight="600">{escape(chart.axis)}</text>'
    )
    # Names that would lie upon each other are moved apart, the lowest first.
    below = TOP + HEIGHT + 14.0
    by_height = sorted(chart.series.items(), key=lambda item: item[1][-1][1])
    for place, (name, found) in enumerate(by_height):
        colour = DARK[place % len(DARK)]
        spots = [
            (LEFT + PLOT * x.share(a), TOP + HEIGHT * (1 - y.share(b))) for a, b in sorted(found)
        ]
        below = min(spots[-1][1], below - 14)
        path = "L".join(f"{a:.1f} {b:.1f}" for a, b in spots)
        lines += [
            f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>',
            *(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in spots),
            f'<text x="{spots[-1][0] + 10:.1f}" y="{below + 4:.1f}" fill="{colour}">'
            f"{escape(name)}</text>",
        ]
    return "\n".join([*lines, "</svg>", ""])


@dataclass(frozen=True)
class _Axis:
    """A logarithmic axis from one power of ten to another."""

    first: int
    last: int

    @classmethod
    def of(cls, values: Sequence[float]) -> _Axis:
        first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        return cls(first, max(last, first + 1))

    def share(self, value: float) -> float:
        """Where a value is, from 0 to 1."""
        return (math.log10(value) - self.first) / (self.last - self.first)


def _frame(title: str, width: float, height: float) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif" font-size="12"'
        ' fill="#24292f" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="20" font-size="14" font-weight="600">{escape(title)}</text>',
    ]


def _legend(chart: Chart) -> list[str]:
    lines: list[str] = []
    x = LEFT
    for colour, series in zip(COLOURS, chart.values, strict=False):
        lines += [
            f'<rect x="{x}" y="32" width="11" height="11" fill="{colour}"/>',
            f'<text x="{x + 16}" y="42">{escape(series)}</text>',
        ]
        x += _legend_width(series)
    return lines


def _legend_width(series: str) -> int:
    # No font is measured here; letters of 12 pixels are 7 wide at most, on average.
    return 34 + 7 * len(series)


def _grid(plot: float) -> list[str]:
    lines: list[str] = []
    for tenths in range(0, 11, 2):
        y = TOP + HEIGHT * (1 - tenths / 10)
        lines += [
            f'<path d="M{LEFT} {y:.0f}h{plot:.0f}" stroke="#d8dee4"/>',
            f'<text x="{LEFT - 8}" y="{y + 4:.0f}" text-anchor="end">{tenths / 10:.1f}</text>',
        ]
    return lines


def _bars(chart: Chart, group: str, left: float) -> list[str]:
    middle = left + BAR * len(chart.values) / 2
    lines = [
        f'<text x="{middle:.0f}" y="{TOP + HEIGHT + 22}" text-anchor="middle"'
        f' font-weight="600">{escape(group)}</text>'
    ]
    for place, (colour, series) in enumerate(zip(COLOURS, chart.values, strict=False)):
        value = chart.values[series].get(group)
        if value is None:
            continue
        x = left + BAR * place
        y = TOP + HEIGHT * (1 - value)
        lines += [
            f'<rect x="{x:.0f}" y="{y:.1f}" width="{BAR - 3}" height="{HEIGHT * value:.1f}"'
            f' fill="{colour}"><title>{escape(f"{group}, {series}: {value:.3f}")}</title></rect>',
            f'<text x="{x + BAR / 2 - 1.5:.0f}" y="{y - 4:.1f}" text-anchor="middle"'
            f' font-size="9">{f"{value:.3f}".lstrip("0")}</text>',
        ]
    return lines
