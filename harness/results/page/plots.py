"""Pictures as SVG text that stands in a page and takes its colours and letters from there."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from harness.results.measured import Column
from harness.results.page.inline import inline
from harness.results.page.markup import Markup, printable
from harness.results.page.series import Band, Line

CELLS = tuple(f"--cell-{number}" for number in range(6))
ACCOUNTS = {
    "start-up": "--start-up", "compile": "--compile", "compute": "--compute",
    "wait for data": "--wait", "evaluate": "--evaluate", "checkpoint": "--checkpoint",
    "lost": "--lost",
}  # fmt: skip
WORDS = ("--good", "--bad", "--same", "--unsure", "--none")
INK, QUIET, HAIR, PAPER, BAND = "--ink", "--quiet", "--hair", "--paper", "--band"
VARIABLES = (*CELLS, *ACCOUNTS.values(), *WORDS, INK, QUIET, HAIR, PAPER, BAND)
"""Colours are variables of the page, which a dark page sets otherwise."""

STAND_IN = {name: f"#fe00{number:02x}" for number, name in enumerate(VARIABLES)}
"""matplotlib takes no variables: colours that nobody else uses, exchanged in its SVG."""

DASHES = ("-", (0, (4, 1.5)), (0, (1.5, 1.5)))
"""Of cells that share a colour."""

WIDTH_PX, HEIGHT_PX = 380, 225
STEPS = (1, 2, 2.5, 5, 10)
"""Between ticks."""
MARKED = 40
"""Lines of so few points show them."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "harness",
    "font.size": 11,
    "figure.titlesize": 11,
    "figure.constrained_layout.w_pad": 0.01,
    "axes.edgecolor": STAND_IN[HAIR],
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.labelcolor": STAND_IN[QUIET],
    "grid.color": STAND_IN[HAIR],
    "text.color": STAND_IN[INK],
    "text.parse_math": False,
    "xtick.color": STAND_IN[HAIR],
    "xtick.labelcolor": STAND_IN[QUIET],
    "ytick.labelcolor": STAND_IN[QUIET],
    "ytick.left": False,
}
VARIABLE_OF = {colour: name for name, colour in STAND_IN.items()}


class Hump(NamedTuple):
    """How values of a cell are spread, and its p50 and p95, which are drawn below."""

    values: Column
    quantiles: tuple[float, float]
    cell: int


class Bar(NamedTuple):
    """Lengths of the parts of one bar; what stands above it, left and right, in whose colour."""

    name: str
    total: str
    parts: Mapping[str, float]
    cell: int | None


def cell_colour(cell: int) -> str:
    """The variable that holds a cell's colour."""
    return CELLS[cell % len(CELLS)]


def curves(
    key: str, told: str, lines: Sequence[Line], bands: Sequence[Band] = (), *,
    x: str, y: str, y_range: tuple[float, float], levels: Mapping[str, float] | None = None,
) -> Markup:  # fmt: skip
    """Lines over bands.

    Args:
        key: what the ids of the picture begin with; another one for each picture of a page.
        told: what it shows, for those who cannot see it.
        x, y: what is along the axes, with its unit.
        levels: horizontal lines, with what is written at each.
    """

    def draw(figure: Figure) -> None:
        axes = quiet_axes(figure, figure.subplots(), x, y)
        for each in bands:
            axes.fill_between(
                each.x, each.low, each.high, color=colour_of(each.cell), alpha=0.16, lw=0
            )
        for line in lines:
            marker = "o" if len(line.x) <= MARKED else ""
            dash = DASHES[line.cell // len(CELLS) % len(DASHES)]
            axes.plot(
                line.x, line.y, ls=dash, lw=1.2, color=colour_of(line.cell), alpha=0.9,
                marker=marker, ms=2.8, mew=0,
            )  # fmt: skip
        for name, level in (levels or {}).items():
            axes.axhline(level, lw=1, ls=(0, (3, 2)), color=STAND_IN[QUIET])
            axes.annotate(
                name, (0, level), (2, -4), xycoords=("axes fraction", "data"),
                textcoords="offset points", fontsize=10, color=STAND_IN[QUIET], va="top",
            )  # fmt: skip
        axes.set_ylim(*y_range)
        axes.margins(x=0.02)

    return drawn(key, told, draw)


def humps(key: str, told: str, groups: Sequence[Hump], *, x: str) -> Markup:
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
            colour = colour_of(each.cell)
            share = 100 * np.histogram(each.values, edges)[0] / len(each.values)
            upper.stairs(share, edges, fill=True, color=colour, alpha=0.18)
            upper.stairs(share, edges, color=colour, lw=1.2)
            p50, p95 = each.quantiles
            lower.plot([p50, p95], [-row, -row], color=colour, lw=1.6)
            lower.plot([p50], [-row], "o", color=colour, ms=5, mew=0)
            lower.plot([p95], [-row], "|", color=colour, ms=8, mew=1.6)
        quiet_axes(figure, lower, x)
        lower.yaxis.set_major_locator(NullLocator())
        lower.set_ylim(0.7 - len(groups), 0.7)

    return drawn(key, told, draw, HEIGHT_PX + 14 * (len(groups) - 1))


def bars(key: str, told: str, rows: Sequence[Bar], *, x: str) -> Markup:
    """A stacked bar for each row, its name above it."""

    def draw(figure: Figure) -> None:
        axes = quiet_axes(figure, figure.subplots(), x)
        ends = max(sum(row.parts.values()) for row in rows)
        places, left = -np.arange(len(rows)), np.zeros(len(rows))
        for part, colour in ACCOUNTS.items():
            lengths = np.array([row.parts.get(part, 0.0) for row in rows])
            if lengths.any():
                axes.barh(places, lengths, 0.36, left, color=STAND_IN[colour], lw=0)
            left += lengths
        near: dict[str, Any] = {"va": "bottom", "fontsize": 10.5, "in_layout": False}
        aside = near | {"textcoords": "offset points"}
        for place, row in enumerate(rows):
            above = 0.24 - place
            if row.cell is not None:
                axes.text(0, above, "■", color=colour_of(row.cell), **near)
            axes.annotate(_short(row.name), (0, above), (0 if row.cell is None else 13, 0), **aside)
            axes.text(ends, above, row.total, ha="right", color=STAND_IN[QUIET], **near)
        axes.grid(axis="y", visible=False)
        axes.yaxis.set_major_locator(NullLocator())
        axes.set_xlim(0, ends)
        axes.set_ylim(0.4 - len(rows), 0.75)

    return drawn(key, told, draw, 50 + 34 * len(rows))


def interval(
    key: str, told: str, *, outer: tuple[float, float] | None, inner: tuple[float, float],
    point: float, same: tuple[float, float], reach: float, colour: str,
) -> Markup:  # fmt: skip
    """An interval on a line from `-reach` to `reach`.

    Args:
        outer, inner: the thin and the thick line.
        same: what is shaded.
        colour: one of WORDS.
    """

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(-1.03 * reach, 1.03 * reach)
        axes.set_ylim(-1, 1)
        low, high = np.clip(same, -1.03 * reach, 1.03 * reach)
        axes.axvspan(low, high, color=STAND_IN[BAND], lw=0)
        axes.axvline(0, color=STAND_IN[QUIET], lw=1)
        stroke = STAND_IN[colour]
        for part, width in ((outer, 1.4), (inner, 3.6)):
            if part is not None:
                axes.plot(np.clip(part, -reach, reach), [0, 0], lw=width, color=stroke)
        for bound in outer or inner:
            if abs(bound) > reach:
                side = float(np.copysign(1, bound))
                axes.plot([side * reach], [0], "<>"[bound > 0], ms=6, mew=0, color=stroke)
        if abs(point) <= reach:
            axes.plot([point], [0], "o", ms=6.5, mew=1.8, mfc=STAND_IN[PAPER], mec=stroke)

    return drawn(key, told, draw, 24, 180, layout=None)


def colour_of(cell: int) -> str:
    """What stands for a cell's colour while matplotlib draws."""
    return STAND_IN[cell_colour(cell)]


def quiet_axes(figure: Figure, axes: Axes, x: str = "", y: str = "") -> Axes:
    """Quiet axes; what is along y stands above it, where it takes no width."""
    axes.set_xlabel(x)
    if y:
        figure.suptitle(y, x=0, ha="left", color=STAND_IN[QUIET])
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
    key: str, told: str, draw: Callable[[Figure], None],
    height_px: int = HEIGHT_PX, width_px: int = WIDTH_PX, *,
    layout: Literal["constrained"] | None = "constrained",
) -> Markup:  # fmt: skip
    """What `draw` draws, as SVG for a page."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A name may hold letters that matplotlib's font lacks; the reader's will have them.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        # As it comes, whatever the user has set: the same runs give the same page.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure((width_px / 72, height_px / 72), dpi=72, layout=layout)
        draw(figure)
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    return inline(written.getvalue(), key, printable(told), VARIABLE_OF)
