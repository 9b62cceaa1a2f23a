"""Pictures of runs: curves, histograms, bars and intervals, as matplotlib's SVG."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from harness.results.measured import Column
from harness.results.page.render import FOLDER, Picture, printable
from harness.results.page.series import Band, Line

COLORS: dict[str, str] = dict(
    re.findall(r"--([\w-]+): (#\w{6});", (FOLDER / "page.css").read_text(encoding="utf-8"))
)
"""The variables of page.css, in which the rest of the page is drawn."""
CELLS = [name for name in COLORS if name.startswith("cell-")]
ACCOUNTS = {
    "start-up": "start-up", "compile": "compile", "compute": "compute", "wait for data": "wait",
    "evaluate": "evaluate", "checkpoint": "checkpoint", "lost": "lost",
}  # fmt: skip
"""Where time goes, in words -> its color."""

DASHES = ("-", (0, (4, 1.5)), (0, (1.5, 1.5)))
"""Of cells that share a color."""

WIDTH_PX, HEIGHT_PX = 380, 225
STEPS = (1, 2, 2.5, 5, 10)
"""Between ticks."""
MARKED = 40
"""Lines of so few points show them."""

NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "harness",
    "font.size": 11,
    "figure.titlesize": 11,
    "figure.constrained_layout.w_pad": 0.01,
    "axes.edgecolor": COLORS["hair"],
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.labelcolor": COLORS["quiet"],
    "grid.color": COLORS["hair"],
    "text.color": COLORS["ink"],
    "text.parse_math": False,
    "xtick.color": COLORS["hair"],
    "xtick.labelcolor": COLORS["quiet"],
    "ytick.labelcolor": COLORS["quiet"],
    "ytick.left": False,
}


class Hump(NamedTuple):
    """How values of a cell are spread, and its p50 and p95, which are drawn below."""

    values: Column
    quantiles: tuple[float, float]
    cell: int


class Bar(NamedTuple):
    """Lengths of the parts of one bar; what stands above it, left and right, in whose color."""

    name: str
    total: str
    parts: Mapping[str, float]
    cell: int | None


class Range(NamedTuple):
    """A point on its thick line and, if there is one, its thin line."""

    point: float
    inner: tuple[float, float]
    outer: tuple[float, float] | None


def cell_color(cell: int) -> str:
    """The name of a cell's color."""
    return CELLS[cell % len(CELLS)]


def curves(
    label: str, lines: Sequence[Line], bands: Sequence[Band] = (), *,
    x: str, y: str, y_range: tuple[float, float], levels: Mapping[str, float] | None = None,
) -> Picture:  # fmt: skip
    """Lines over bands.

    Args:
        label: what it shows, for those who cannot see it.
        x, y: what is along the axes, with its unit.
        levels: horizontal lines, with what is written at each.
    """

    def draw(figure: Figure) -> None:
        axes = quiet_axes(figure, figure.subplots(), x, y)
        for each in bands:
            axes.fill_between(
                each.x, each.low, each.high, color=color_of(each.cell), alpha=0.16, lw=0
            )
        for line in lines:
            marker = "o" if len(line.x) <= MARKED else ""
            dash = DASHES[line.cell // len(CELLS) % len(DASHES)]
            axes.plot(
                line.x, line.y, ls=dash, lw=1.2, color=color_of(line.cell), alpha=0.9,
                marker=marker, ms=2.8, mew=0,
            )  # fmt: skip
        for name, level in (levels or {}).items():
            axes.axhline(level, lw=1, ls=(0, (3, 2)), color=COLORS["quiet"])
            axes.annotate(
                name, (0, level), (2, -4), xycoords=("axes fraction", "data"),
                textcoords="offset points", fontsize=10, color=COLORS["quiet"], va="top",
            )  # fmt: skip
        axes.set_ylim(*y_range)
        axes.margins(x=0.02)

    return drawn(label, draw)


def humps(label: str, groups: Sequence[Hump], *, x: str) -> Picture:
    """Histograms, and below them a point at p50 with a line to p95 for each."""

    def draw(figure: Figure) -> None:
        strip_px = 14 * len(groups) + 8
        upper, lower = figure.subplots(2, sharex=True, height_ratios=[HEIGHT_PX - 82, strip_px])
        quiet_axes(figure, upper, y="log periods, %")
        upper.tick_params(axis="x", bottom=False)
        seen = np.concatenate([each.values for each in groups])
        low, high = np.percentile(seen, (0.5, 99.5))
        pad = max((high - low) / 20, high / 200)
        edges = np.linspace(low - pad, high + pad, 41)
        for row, each in enumerate(groups):
            color = color_of(each.cell)
            share = 100 * np.histogram(each.values, edges)[0] / len(each.values)
            upper.stairs(share, edges, fill=True, color=color, alpha=0.18)
            upper.stairs(share, edges, color=color, lw=1.2)
            p50, p95 = each.quantiles
            lower.plot([p50, p95], [-row, -row], color=color, lw=1.6)
            lower.plot([p50], [-row], "o", color=color, ms=5, mew=0)
            lower.plot([p95], [-row], "|", color=color, ms=8, mew=1.6)
        quiet_axes(figure, lower, x)
        lower.yaxis.set_major_locator(NullLocator())
        lower.set_ylim(0.7 - len(groups), 0.7)

    return drawn(label, draw, HEIGHT_PX + 14 * (len(groups) - 1))


def bars(label: str, rows: Sequence[Bar], *, x: str) -> Picture:
    """A stacked bar for each row, its name above it."""

    def draw(figure: Figure) -> None:
        axes = quiet_axes(figure, figure.subplots(), x)
        ends = max(sum(row.parts.values()) for row in rows)
        places, left = -np.arange(len(rows)), np.zeros(len(rows))
        for part, color in ACCOUNTS.items():
            lengths = np.array([row.parts.get(part, 0.0) for row in rows])
            if lengths.any():
                axes.barh(places, lengths, 0.36, left, color=COLORS[color], lw=0)
            left += lengths
        near: dict[str, Any] = {"va": "bottom", "fontsize": 10.5, "in_layout": False}
        aside = near | {"textcoords": "offset points"}
        for place, row in enumerate(rows):
            above = 0.24 - place
            if row.cell is not None:
                axes.text(0, above, "■", color=color_of(row.cell), **near)
            axes.annotate(_short(row.name), (0, above), (0 if row.cell is None else 13, 0), **aside)
            axes.text(ends, above, row.total, ha="right", color=COLORS["quiet"], **near)
        axes.grid(axis="y", visible=False)
        axes.yaxis.set_major_locator(NullLocator())
        axes.set_xlim(0, ends)
        axes.set_ylim(0.4 - len(rows), 0.75)

    return drawn(label, draw, 50 + 34 * len(rows))


def interval(
    label: str, span: Range, same: tuple[float, float], reach: float, color: str
) -> Picture:
    """An interval on a line from `-reach` to `reach`.

    Args:
        same: what is shaded.
        color: its name in page.css.
    """
    point, inner, outer = span

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(-1.03 * reach, 1.03 * reach)
        axes.set_ylim(-1, 1)
        low, high = np.clip(same, -1.03 * reach, 1.03 * reach)
        axes.axvspan(low, high, color=COLORS["band"], lw=0)
        axes.axvline(0, color=COLORS["quiet"], lw=1)
        stroke = COLORS[color]
        for part, width in ((outer, 1.4), (inner, 3.6)):
            if part is not None:
                axes.plot(np.clip(part, -reach, reach), [0, 0], lw=width, color=stroke)
        for bound in outer or inner:
            if abs(bound) > reach:
                side = float(np.copysign(1, bound))
                axes.plot([side * reach], [0], "<>"[bound > 0], ms=6, mew=0, color=stroke)
        if abs(point) <= reach:
            axes.plot([point], [0], "o", ms=6.5, mew=1.8, mfc=COLORS["paper"], mec=stroke)

    return drawn(label, draw, 24, 180, layout=None)


def color_of(cell: int) -> str:
    """A cell's color."""
    return COLORS[cell_color(cell)]


def quiet_axes(figure: Figure, axes: Axes, x: str = "", y: str = "") -> Axes:
    """Quiet axes; what is along y stands above it, where it takes no width."""
    axes.set_xlabel(x)
    if y:
        figure.suptitle(y, x=0, ha="left", color=COLORS["quiet"])
    axes.grid(axis="y", lw=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=STEPS))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(plain_number))
    return axes


def plain_number(value: float, _: object = None) -> str:
    """A number at an axis."""
    return f"{value:,.10g}".replace("-", "\N{MINUS SIGN}")


def _short(name: str, most: int = 44) -> str:
    half = most // 2
    name = printable(name).replace("\n", " ").replace("\t", " ")
    return name if len(name) <= most else f"{name[:half]}…{name[1 - half :]}"


def drawn(
    label: str, draw: Callable[[Figure], None],
    height_px: int = HEIGHT_PX, width_px: int = WIDTH_PX, *,
    layout: Literal["constrained"] | None = "constrained",
) -> Picture:  # fmt: skip
    """What `draw` draws, in the page's colors; its letters are left to the page."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A name may hold letters that matplotlib's font lacks; the reader's will have them.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        # As it comes, whatever the user has set: the same runs give the same page.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure((width_px / 72, height_px / 72), dpi=72, layout=layout)
        draw(figure)
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata=NO_METADATA)
    svg = written.getvalue()
    return Picture(svg[svg.index("<svg") :], label)
