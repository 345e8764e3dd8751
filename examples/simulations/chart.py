"""Draw line charts as SVG, with the standard library only. They adapt to light and dark mode."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

Point = tuple[float, float]

WIDTH = 760
COLUMNS = 2
HEADER = 64  # title and legend
LEFT, RIGHT, ABOVE, BELOW = 56, 16, 34, 50  # around each plot, for its labels
PLOT_HEIGHT = 150
CHARACTER_WIDTH = 7  # roughly, to place the entries of the legend

STYLE = """
text{font:13px system-ui,sans-serif;fill:#1f2328}
.title{font-size:16px;font-weight:600}.panel{font-weight:600}.tick{font-size:12px}
.middle{text-anchor:middle}.end{text-anchor:end}
.background{fill:#fff}.grid{stroke:#d1d9e0}.shaded{fill:#818b98;fill-opacity:.18}
.line{fill:none;stroke-width:2;stroke-linejoin:round}
.grey{stroke:#818b98}.orange{stroke:#cf4a00}.blue{stroke:#0969da}
@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.background{fill:#0d1117}.grid{stroke:#3d444d}
.grey{stroke:#9198a1}.orange{stroke:#ff9b52}.blue{stroke:#58a6ff}}
"""


class Line(NamedTuple):
    """A named series of points; the colour is one of grey, orange and blue."""

    label: str
    colour: str
    points: Sequence[Point]


class Panel(NamedTuple):
    """One plot. Each axis starts at 0 and ends at its last tick."""

    title: str
    x_label: str
    x_ticks: Sequence[int]
    y_ticks: Sequence[int]
    lines: Sequence[Line]
    shaded: tuple[float, float] | None = None  # start and end of a shaded area, on the x axis


def draw(title: str, description: str, panels: Sequence[Panel]) -> str:
    """Return the panels as an SVG document. All panels need the same lines: they share a legend."""
    cell_width, cell_height = WIDTH / COLUMNS, ABOVE + PLOT_HEIGHT + BELOW
    height = HEADER + cell_height * math.ceil(len(panels) / COLUMNS)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(description)}</desc>",
        f"<style>{STYLE}</style>",
        f'<rect class="background" width="{WIDTH}" height="{height}" rx="8"/>',
        _text(20, 28, "title", title),
        *_legend(panels[0].lines),
    ]
    for index, panel in enumerate(panels):
        row, column = divmod(index, COLUMNS)
        x, y = column * cell_width + LEFT, HEADER + row * cell_height + ABOVE
        parts += [
            f'<g transform="translate({x:g} {y:g})">',
            *_panel(panel, cell_width - LEFT - RIGHT),
            "</g>",
        ]
    return "\n".join([*parts, "</svg>", ""])


def _legend(lines: Sequence[Line]) -> Iterator[str]:
    x = 20
    for line in lines:
        yield f'<path class="line {line.colour}" d="M{x} 50h24"/>'
        yield _text(x + 30, 54, "", line.label)
        x += 54 + CHARACTER_WIDTH * len(line.label)


def _panel(panel: Panel, width: float) -> Iterator[str]:
    x_scale, y_scale = width / panel.x_ticks[-1], PLOT_HEIGHT / panel.y_ticks[-1]
    yield _text(0, -12, "panel", panel.title)
    if panel.shaded:
        start, end = (x * x_scale for x in panel.shaded)
        yield (
            f'<rect class="shaded" x="{start:.1f}" width="{end - start:.1f}" '
            f'height="{PLOT_HEIGHT}"/>'
        )
    for tick in panel.y_ticks:
        y = PLOT_HEIGHT - tick * y_scale
        yield f'<path class="grid" d="M0 {y:.1f}h{width:g}"/>'
        yield _text(-8, y + 4, "tick end", f"{tick:,}")
    for tick in panel.x_ticks:
        yield _text(tick * x_scale, PLOT_HEIGHT + 18, "tick middle", f"{tick:,}")
    yield _text(width / 2, PLOT_HEIGHT + 36, "tick middle", panel.x_label)
    for line in panel.lines:
        points = " ".join(
            f"{x * x_scale:.1f},{PLOT_HEIGHT - y * y_scale:.1f}" for x, y in line.points
        )
        yield f'<polyline class="line {line.colour}" points="{points}"/>'


def _text(x: float, y: float, style: str, text: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
