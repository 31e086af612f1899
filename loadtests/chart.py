"""A bar chart as SVG: groups of bars side by side, each with its value, and a legend above."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

# Greys, a pair of blues and so on: neighbours differ in lightness, for print and for all eyes.
COLOURS = ("#9aa3ad", "#5b6672", "#f0b35a", "#cf7f1e", "#1f5fa8", "#7fb2e5", "#c9ced4")
HEIGHT = 300
LEFT = 46
TOP = 58
BOTTOM = 34
BAR = 26
GAP = 34


@dataclass(frozen=True)
class Chart:
    """`values[series][group]` between 0 and 1; a series may lack a group."""

    title: str
    groups: Sequence[str]
    values: Mapping[str, Mapping[str, float]]


def svg(chart: Chart) -> str:
    """The chart as a document of its own, on white, whatever page it is shown on."""
    group_width = BAR * len(chart.values) + GAP
    plot = group_width * len(chart.groups)
    legend = sum(_legend_width(series) for series in chart.values)
    width = LEFT + max(plot, legend) + 16
    height = TOP + HEIGHT + BOTTOM
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif" font-size="12"'
        ' fill="#24292f" role="img">',
        f"<title>{escape(chart.title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="20" font-size="14" font-weight="600">{escape(chart.title)}</text>',
        *_legend(chart),
        *_grid(plot),
    ]
    for place, group in enumerate(chart.groups):
        lines += _bars(chart, group, LEFT + place * group_width + GAP / 2)
    return "\n".join([*lines, "</svg>", ""])


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
