"""Draw rates with their limits, and efficiency over the number of ranks."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from harness.results.page import plots
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
        axes = plots.bar_axes(figure, "images/s", len(rows))
        for i, row in enumerate(rows):
            axes.barh(-i, row.value, 0.4, color=plots.color_of(0), lw=0)
            axes.plot(row.interval, [-i, -i], lw=1.4, color=plots.COLORS["ink"])
            if row.limit is not None:
                axes.plot([row.limit], [-i], "|", color=plots.color_of(1), ms=13, mew=2)
            axes.annotate(
                f"{row.name}  {row.value:,.0f}", (0, 0.24 - i), va="bottom", fontsize=10.5,
                xycoords=axes.get_yaxis_transform(), in_layout=False,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(plots.NUMBER)
        axes.set_xticks((), minor=True)
        axes.set_xlim(min(row.value for row in rows) / 2)

    return plots.draw_svg(label, draw, 50 + 34 * len(rows))


def scaling(
    label: str, lines: Sequence[Line], points: Sequence[Line], *, x: str, y: str
) -> Picture:
    """Draw points in the colors of their cells, joined by gray lines; x is logarithmic."""

    def draw(figure: Figure) -> None:
        axes = plots.style_axes(figure, figure.subplots(), x, y)
        axes.axhline(100, lw=1, ls=(0, (3, 2)), color=plots.COLORS["quiet"])
        for line in lines:
            dash = plots.DASHES[line.cell % len(plots.DASHES)]
            axes.plot(line.x, line.y, lw=1, ls=dash, color=plots.COLORS["quiet"])
        for point in points:
            axes.plot(point.x, point.y, "o", color=plots.color_of(point.cell), ms=4.5, mew=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({ranks for point in points for ranks in point.x}))
        axes.set_xticks((), minor=True)
        axes.xaxis.set_major_formatter(plots.NUMBER)
        shown = np.concatenate([point.y for point in points])
        axes.set_ylim(min(shown.min() - 3, 90), max(shown.max() + 2, 102))
        axes.margins(x=0.06)

    return plots.draw_svg(label, draw)
