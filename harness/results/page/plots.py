"""Draw curves, histograms, bars and intervals as SVG with matplotlib."""

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.results.measured import Column
from harness.results.page.render import FOLDER, Picture, printable
from harness.results.page.series import Band, Line

CSS = (FOLDER / "page.css").read_text(encoding="utf-8")
COLORS: dict[str, str] = dict(re.findall(r"--([\w-]+): (#\w{6});", CSS))
"""The colors of page.css, so that pictures match the rest of the page."""
CELLS = [name for name in COLORS if name.startswith("cell-")]
ACCOUNTS = {
    "start-up": "start-up", "compile": "compile", "compute": "compute", "wait for data": "wait",
    "evaluate": "evaluate", "checkpoint": "checkpoint", "lost": "lost",
}  # fmt: skip
"""Parts of the wall time -> their colors."""
DASHES = ("-", (0, (4, 1.5)), (0, (1.5, 1.5)))
"""Line styles that distinguish cells of the same color."""
WIDTH_PX, HEIGHT_PX = 380, 225
NUMBER = "{x:,.10g}"
"""Format of numbers at an axis."""
Bounds = tuple[float, float]
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "harness",
    "font.size": 11,
    "figure.titlesize": 11,
    "figure.constrained_layout.w_pad": 0.01,
    "axes.axisbelow": True,
    "text.color": COLORS["ink"],
    "text.parse_math": False,
    "ytick.left": False,
    **{f"axes.spines.{side}": False for side in ("top", "left", "right")},
    **dict.fromkeys(("axes.edgecolor", "grid.color", "xtick.color"), COLORS["hair"]),
    **{f"{part}.labelcolor": COLORS["quiet"] for part in ("axes", "xtick", "ytick")},
}


def cell_color(cell: int) -> str:
    """Return the name, in page.css, of a cell's color."""
    return CELLS[cell % len(CELLS)]


def curves(
    label: str, lines: Sequence[Line], bands: Sequence[Band] = (), *,
    x: str, y: str, y_range: tuple[float, float], levels: Mapping[str, float] | None = None,
) -> Picture:  # fmt: skip
    """Draw lines over bands, and horizontal lines at labeled levels."""

    def draw(figure: Figure) -> None:
        axes = style_axes(figure, figure.subplots(), x, y)
        for xs, low, high, cell in bands:
            axes.fill_between(xs, low, high, color=color_of(cell), alpha=0.16, lw=0)
        for line in lines:
            marker = "o" if len(line.x) <= 40 else ""  # each point, if these are few
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

    return draw_svg(label, draw)


def histogram(label: str, groups: Sequence[tuple[Column, float, float, int]], *, x: str) -> Picture:
    """Draw a histogram per group (values, p50, p95, cell), below them p50 with a line to p95."""

    def draw(figure: Figure) -> None:
        strip_px = 14 * len(groups) + 8
        upper, lower = figure.subplots(2, sharex=True, height_ratios=[HEIGHT_PX - 82, strip_px])
        style_axes(figure, upper, y="log periods, %")
        upper.tick_params(axis="x", bottom=False)
        low, high = np.percentile(np.concatenate([group[0] for group in groups]), (0.5, 99.5))
        pad = max((high - low) / 20, high / 200)
        edges = np.linspace(low - pad, high + pad, 41)
        for row, (each, p50, p95, cell) in enumerate(groups):
            color = color_of(cell)
            share = 100 * np.histogram(each, edges)[0] / len(each)
            upper.stairs(share, edges, fill=True, color=color, alpha=0.18)
            upper.stairs(share, edges, color=color, lw=1.2)
            lower.plot([p50, p95], [-row, -row], color=color, lw=1.6)
            lower.plot([p50], [-row], "o", color=color, ms=5, mew=0)
            lower.plot([p95], [-row], "|", color=color, ms=8, mew=1.6)
        style_axes(figure, lower, x)
        lower.set(yticks=(), ylim=(0.7 - len(groups), 0.7))

    return draw_svg(label, draw, HEIGHT_PX + 14 * (len(groups) - 1))


def bars(
    label: str, rows: Sequence[tuple[str, str, Mapping[str, float], int | None]], *, x: str
) -> Picture:
    """Draw stacked bars; a row holds its texts on the left and right, parts, and cell."""

    def draw(figure: Figure) -> None:
        axes = bar_axes(figure, x, len(rows))
        longest = max(sum(parts.values()) for _, _, parts, _ in rows)
        positions, left = -np.arange(len(rows)), np.zeros(len(rows))
        for part, color in ACCOUNTS.items():
            lengths = np.array([parts.get(part, 0.0) for _, _, parts, _ in rows])
            if lengths.any():
                axes.barh(positions, lengths, 0.36, left, color=COLORS[color], lw=0)
            left += lengths
        text: dict[str, Any] = {"va": "bottom", "fontsize": 10.5, "in_layout": False}
        offset = text | {"textcoords": "offset points"}
        for i, (name, total, _, cell) in enumerate(rows):
            above = 0.24 - i
            if cell is not None:
                axes.text(0, above, "■", color=color_of(cell), **text)
            axes.annotate(_short(name), (0, above), (0 if cell is None else 13, 0), **offset)
            axes.text(longest, above, total, ha="right", color=COLORS["quiet"], **text)
        axes.set_xlim(0, longest)

    return draw_svg(label, draw, 50 + 34 * len(rows))


def interval(
    label: str, point: float, inner: Bounds, outer: Bounds | None, *, same: Bounds, reach: float,
    color: str,
) -> Picture:  # fmt: skip
    """Draw a point on a thick and perhaps a thin line, within `reach`; `same` is shaded."""

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        sides = -1.03 * reach, 1.03 * reach
        axes.set(xlim=sides, ylim=(-1, 1))
        axes.axvspan(*np.clip(same, *sides), color=COLORS["band"], lw=0)
        axes.axvline(0, color=COLORS["quiet"], lw=1)
        stroke = COLORS[color]
        for ends, width in ((outer, 1.4), (inner, 3.6)):
            if ends is not None:
                axes.plot(np.clip(ends, -reach, reach), [0, 0], lw=width, color=stroke)
        for bound in outer or inner:
            if abs(bound) > reach:
                end = np.copysign(reach, bound)
                axes.plot([end], [0], "<>"[bound > 0], ms=6, mew=0, color=stroke)
        if abs(point) <= reach:
            axes.plot([point], [0], "o", ms=6.5, mew=1.8, mfc=COLORS["paper"], mec=stroke)

    return draw_svg(label, draw, 24, 180, layout=None)


def color_of(cell: int) -> str:
    """Return a cell's color, such as `#1f77b4`."""
    return COLORS[cell_color(cell)]


def style_axes(figure: Figure, axes: Axes, x: str = "", y: str = "") -> Axes:
    """Style the axes; the title of y stands above the picture, where it takes no width."""
    axes.set_xlabel(x)
    if y:
        figure.suptitle(y, x=0, ha="left", color=COLORS["quiet"])
    axes.grid(axis="y", lw=0.8)
    for axis, most_ticks in ((axes.xaxis, 6), (axes.yaxis, 5)):
        axis.set_major_locator(MaxNLocator(most_ticks, steps=(1, 2, 2.5, 5, 10)))
        axis.set_major_formatter(NUMBER)
    return axes


def bar_axes(figure: Figure, x: str, rows: int) -> Axes:
    """Return axes for horizontal bars at y = 0, -1, ..., with room for a text above each."""
    axes = style_axes(figure, figure.subplots(), x)
    axes.grid(axis="y", visible=False)
    axes.set(yticks=(), ylim=(0.4 - rows, 0.75))
    return axes


def _short(name: str) -> str:
    name = printable(name).replace("\n", " ").replace("\t", " ")
    return name if len(name) <= 44 else f"{name[:22]}…{name[-21:]}"


def draw_svg(
    label: str, draw: Callable[[Figure], None],
    height_px: int = HEIGHT_PX, width_px: int = WIDTH_PX, *,
    layout: Literal["constrained"] | None = "constrained",
) -> Picture:  # fmt: skip
    """Return what `draw` draws, in the page's colors; text stays text, in the page's font."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A name may have letters that matplotlib's font lacks; the browser's font has them.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        # Ignore the user's matplotlibrc, so that the same runs give the same page.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure((width_px / 72, height_px / 72), dpi=72, layout=layout)
        draw(figure)
        buffer = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue()
    return Picture(svg[svg.index("<svg") :], label)
