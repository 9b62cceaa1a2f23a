"""Draw rates with their limits, and efficiency over the number of ranks."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from harness.results.page.plots import COLORS, DASHES, NUMBER, color_of, draw_svg, style_axes
from harness.results.page.render import Picture
from harness.results.page.series import Line


class Rate(NamedTuple):
    """A measured rate with its interval, and its upper limit, if that is known."""

    name: str
    value: float
    interval: tuple[float, float]
    limit: float | None


def rates(label: str, rows: Sequence[Rate]) -> Picture:
    """Draw a bar for each rate, with its interval and limit; x is logarithmic."""

    def draw(figure: Figure) -> None:
        axes = style_axes(figure, figure.subplots(), "images/s")
        for i, row in enumerate(rows):
            axes.barh(-i, row.value, 0.4, color=color_of(0), lw=0)
            axes.plot(row.interval, [-i, -i], lw=1.4, color=COLORS["ink"])
            if row.limit is not None:
                axes.plot([row.limit], [-i], "|", color=color_of(1), ms=13, mew=2)
            axes.annotate(
                f"{row.name}  {row.value:,.0f}", (0, 0.24 - i), va="bottom", fontsize=10.5,
                xycoords=axes.get_yaxis_transform(), in_layout=False,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(NUMBER)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(min(row.value for row in rows) / 2)
        axes.grid(axis="y", visible=False)
        axes.yaxis.set_major_locator(NullLocator())
        axes.set_ylim(0.4 - len(rows), 0.75)

    return draw_svg(label, draw, 50 + 34 * len(rows))


def scaling(
    label: str, lines: Sequence[Line], points: Sequence[Line], *, x: str, y: str
) -> Picture:
    """Draw points in the colors of their cells, joined by gray lines; x is logarithmic."""

    def draw(figure: Figure) -> None:
        axes = style_axes(figure, figure.subplots(), x, y)
        axes.axhline(100, lw=1, ls=(0, (3, 2)), color=COLORS["quiet"])
        for line in lines:
            dash = DASHES[line.cell % len(DASHES)]
            axes.plot(line.x, line.y, lw=1, ls=dash, color=COLORS["quiet"])
        for point in points:
            axes.plot(point.x, point.y, "o", color=color_of(point.cell), ms=4.5, mew=0)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(sorted({n for point in points for n in point.x})))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(NUMBER)
        lowest = min(float(point.y.min()) for point in points)
        highest = max(float(point.y.max()) for point in points)
        axes.set_ylim(min(lowest - 3, 90), max(highest + 2, 102))
        axes.margins(x=0.06)

    return draw_svg(label, draw)
