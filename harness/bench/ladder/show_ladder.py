"""Print a ladder as a table, and write it as ladder.json and as a page."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from harness import config as cfg
from harness.bench.ladder.advice import Change
from harness.bench.ladder.ladder import measure
from harness.bench.ladder.summary import NARROW_PCT, Ladder, Measured
from harness.bench.output import make_folder, write_both
from harness.system.console import out, right_table, wide

HEAD = ("", "images/s", "+- %", "p50 ms", "p95 ms", "cores", "MB/s", "limit", "of it", "share")


def run(config: cfg.Config, argv: Sequence[str], *, minutes: float, folder: Path) -> None:
    """Measure, print, and write ladder.json and ladder.html into a folder; a collective call.

    Raises:
        BadInput: the config cannot be run here, or the folder cannot be written.
    """
    make_folder(folder)
    if (measured := measure(config, minutes=minutes)) is None:
        return
    ladder, change = measured
    table = right_table(*HEAD)
    for rung in ladder.rungs:
        table.add_row(*_cells(rung))
    wide.print(table)
    report = lines(ladder, change, argv)
    out.print("\n".join(report))
    content = ladder.as_json() | {"first_change": change.text, "lines": report}
    write_both(folder / "ladder", content, lambda: _page(ladder, report))


def _cells(rung: Measured) -> list[str]:
    if rung.missing is not None:
        return [rung.name, "not measured", *[""] * (len(HEAD) - 2)]
    return [
        rung.name,
        _number(rung.images_per_second),
        _number(rung.half_width_pct, ".1f"),
        _number(rung.step_ms_p50, ",.1f"),
        _number(rung.step_ms_p95, ",.1f"),
        _number(rung.cores, ".1f"),
        _number(rung.bytes_per_second and rung.bytes_per_second / 1e6),
        _number(rung.limit),
        _number(rung.of_limit_pct, ".0f", " %"),
        _number(rung.share_pct, ".0f", " %"),
    ]


def _number(value: float | None, form: str = ",.0f", unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"


def lines(ladder: Ladder, change: Change, argv: Sequence[str]) -> list[str]:
    """Return the report: the bottleneck, headroom, law, limits, and what to change first."""
    rate, without = ladder.rate, ladder.without(ladder.binds)
    report = [
        f"binds: {ladder.binds}, {_bound_by(ladder)}"
        + (f"; without it: {without:,.0f} images/s" if without else ""),
        f"law: {ladder.law.in_words()}: {ladder.predicted:,.0f} images/s from the parts, "
        f"{rate:,.0f} measured ({100 * (ladder.predicted / rate - 1):+.1f} %)",
        f"limits: {ladder.peak}; of that the network's operations use {ladder.mfu_pct:.1f} % "
        f"(MFU), its bytes {ladder.memory_pct:.1f} % if all is fused",
    ]
    uncertain = [
        f"{rung.name} +-{rung.half_width_pct:.1f} %"
        for rung in ladder.rungs
        if rung.half_width_pct is not None and rung.half_width_pct > NARROW_PCT
    ]
    if once := [rung.name for rung in ladder.rungs if not rung.missing and rung.high is None]:
        uncertain.append(f"{', '.join(once)} (one turn each)")
    if uncertain:
        report.append(
            f"not known to within {NARROW_PCT:g} %: {', '.join(uncertain)}; give more --minutes, "
            "or a quieter machine"
        )
    report += [f"{r.name}: not measured ({r.missing})" for r in ladder.rungs if r.missing]
    report.append(f"change first: {change.text}")
    if change.arm is not None:
        ranks = ["--ranks", str(ladder.ranks_per_node)] if ladder.ranks_per_node > 1 else []
        sweep = shlex.join([*ranks, "--arm", change.arm, *argv])
        report.append(f"to measure its effect: harness bench sweep --minutes 5 {sweep}")
    return report


def _bound_by(ladder: Ladder) -> str:
    parts = sorted(ladder.parts_s.items(), key=lambda part: -part[1])
    if ladder.law.shared:
        total_s = sum(ladder.parts_s.values())
        return ", ".join(f"{part} {100 * s / total_s:.0f} %" for part, s in parts) + " of the time"
    rates = ", ".join(f"{part} {1 / s:,.0f}" for part, s in parts)
    return f"the slowest of {rates} images/s"


def _page(ladder: Ladder, points: Sequence[str]) -> str:
    from harness.results.page import plots_speed, render  # matplotlib is an extra

    rates = [
        plots_speed.Rate(
            rung.name, rate := rung.images_per_second or 0.0,
            (rate, rate) if rung.high is None else (rung.low or 0.0, rung.high), rung.limit,
        )
        for rung in ladder.rungs
        if rung.missing is None
    ]  # fmt: skip
    picture = plots_speed.rates("images per second of each rung, and its limit", rates)
    figure = render.Figure("", picture, note="images/s; | is the limit of the rung")
    cells = [[*_cells(rung), rung.about] for rung in ladder.rungs]
    table = render.Table([*HEAD, "what it is"], cells, right=range(1, len(HEAD)))
    what = [line.strip() for line in ladder.what]
    page = render.Page(
        "What binds", what[0], f"ladder: {what[0]}", {"": [figure]}, {"": table}, points, foot=what
    )
    return render.render(page)
