"""Pictures of speed: rates beside their limits, and how they grow with the number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from harness.results.page.plots import COLORS, DASHES, color_of, drawn, plain_number, quiet_axes
from harness.results.page.render import Picture
from harness.results.page.series import Line


class Rate(NamedTuple):
    """A measured rate with its interval, and what it cannot exceed, if that is known."""

    name: str
    value: float
    interval: tuple[float, float]
    limit: float | None


def rates(label: str, rows: Sequence[Rate]) -> Picture:
    """A bar for each rate, a line over its interval, a mark at its limit; x is logarithmic."""

    def draw(figure: Figure) -> None:
        axes = quiet_axes(figure, figure.subplots(), "images/s")
        for place, row in enumerate(rows):
            axes.barh(-place, row.value, 0.4, color=color_of(0), lw=0)
            axes.plot(row.interval, [-place, -place], lw=1.4, color=COLORS["ink"])
            if row.limit is not None:
                axes.plot([row.limit], [-place], "|", color=color_of(1), ms=13, mew=2)
            axes.annotate(
                f"{row.name}  {row.value:,.0f}", (0, 0.24 - place), va="bottom", fontsize=10.5,
                xycoords=axes.get_yaxis_transform(), in_layout=False,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(plain_number))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(min(row.value for row in rows) / 2)
        axes.grid(axis="y", visible=False)
        axes.yaxis.set_major_locator(NullLocator())
        axes.set_ylim(0.4 - len(rows), 0.75)

    return drawn(label, draw, 50 + 34 * len(rows))


def scaling(
    label: str, lines: Sequence[Line], points: Sequence[Line], *, x: str, y: str
) -> Picture:
    """Points in the colors of their cells, joined by quiet lines; x is logarithmic."""

    def draw(figure: Figure) -> None:
        axes = quiet_axes(figure, figure.subplots(), x, y)
        axes.axhline(100, lw=1, ls=(0, (3, 2)), color=COLORS["quiet"])
        for line in lines:
            dash = DASHES[line.cell % len(DASHES)]
            axes.plot(line.x, line.y, lw=1, ls=dash, color=COLORS["quiet"])
        for each in points:
            axes.plot(each.x, each.y, "o", color=color_of(each.cell), ms=4.5, mew=0)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(sorted({n for each in points for n in each.x})))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(plain_number))
        lowest = min(float(each.y.min()) for each in points)
        highest = max(float(each.y.max()) for each in points)
        axes.set_ylim(min(lowest - 3, 90), max(highest + 2, 102))
        axes.margins(x=0.06)

    return drawn(label, draw)
