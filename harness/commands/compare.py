"""`harness compare`: is this better, worse or the same, and how sure is that?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer import Argument, Option

from harness.commands.parser import group, verb
from harness.errors import EXIT_GOOD, BadInput
from harness.system.console import err, out

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.results.stats.compare import Comparison
    from harness.results.stats.gate import Check
    from harness.results.stats.metrics import Metric
    from harness.results.stats.reproduce import Reproduction

DESCRIPTION = """\
Compare runs with runs, or with published results. NEW is judged, BASE is what it is held against;
of several sides the last is the base.

  harness compare runs/a-s0 runs/b-s0                     two runs
  harness compare 'runs/a-s*' 'runs/b-s*'                 seeds of two recipes
  harness compare runs/a-s* vs runs/b-s*                  the same, as a shell spreads it
  harness compare 'runs/a-s*' ref:goyal2017-resnet50-b256 does it reproduce?
  harness compare 'wandb:team/bench?group=G' runs/b-s0    out of W&B
  harness compare NEW BASE --max-slowdown-pct 3           as a gate
  harness compare runs/a-s0 --html a.html                 the report of one run

A single run says little: start each side three times or more. As a gate, exit code 0 says that it
holds, 1 that it does not, 3 that it cannot be told."""


app = group()


@verb(app, DESCRIPTION)
def compare(
    addresses: list[str] = Argument(metavar="ADDRESS",
        help="run folder, glob, wandb:..., offline W&B folder, ref:ID; `vs` divides sides"),
    testing: list[str] = Option([], metavar="KEY",
        help="what is meant to differ, such as engine.compile or torch; may be repeated"),
    primary: str = Option("images_per_second", metavar="METRIC",
        help="the metric that is asked for first; the others' verdicts are adjusted for their "
        "number"),
    margin: list[str] = Option([], metavar="METRIC=VALUE",
        help="what counts as equal: points for accuracy, percent for the rest, as top1=0.25"),
    assume_std: list[str] = Option([], metavar="METRIC=VALUE",
        help="standard deviation from run to run, where no side has repeats"),
    target_top1_pct: float | None = Option(None, metavar="PCT",
        help="compare the training time to this"),
    anyway: bool = Option(False, "--anyway",
        help="judge even what is not comparable (else exit 3)"),
    max_slowdown_pct: float | None = Option(None, metavar="PCT", help="gate: of throughput"),
    min_top1_pct: float | None = Option(None, metavar="PCT", help="gate: mean of the new runs"),
    junit: Path | None = Option(None, metavar="FILE", help="gate: write the checks as JUnit XML"),
    html: Path | None = Option(None, metavar="FILE",
        help="write a page: one file, no network needed; of one side alone, its report"),
) -> None:  # fmt: skip
    """Compare runs with runs or with published results: verdicts and how sure they are."""
    from harness.results import show_compare
    from harness.results.sides import arms, check_testing
    from harness.results.stats import gate, metrics

    write_page = _page_writer() if html else None
    margins = _pairs("--margin", margin)
    known = metrics.with_settings(
        metrics.metrics(target_top1_pct), margins, _pairs("--assume-std", assume_std)
    )
    known = metrics.first(known, primary)
    sides = arms(addresses, report=bool(html))
    check_testing(testing, sides.cells)
    told = _comparisons(sides, known, primary)
    reproductions = _reproductions(sides, margins)
    for each in told:
        show_compare.show_comparison(each, testing, judge=anyway or not each.doubts)
    for one in reproductions:
        show_compare.show_reproduction(one, judge=anyway or not one.doubts)
    unlike = [each.doubts for each in told] + [one.doubts for one in reproductions]
    doubts = dict.fromkeys(doubt for found in unlike for doubt in found)
    checks = [gate.comparable(list(doubts), anyway)]
    checks += [gate.reproduced(each) for each in reproductions]
    checks += _gates(max_slowdown_pct, min_top1_pct, sides, told)
    if junit:
        gate.write_junit(junit, checks)
    _say(checks, told)
    if write_page:
        write_page(
            html, sides.cells, told, reproductions, testing=testing,
            judge=anyway,
        )  # fmt: skip
        out.print(f"page: {html}")
    if code := gate.exit_code(checks):
        sys.exit(code)


def _page_writer() -> Callable[..., None]:
    """Found before any work.

    Raises:
        BadInput: matplotlib, an extra, is not there.
    """
    try:
        from harness.results.page.page import write_page
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise BadInput("--html needs matplotlib: pip install 'imagenet-harness[page]'") from None
    return write_page


def _pairs(option: str, texts: list[str]) -> dict[str, float]:
    """`top1=0.25` of each text."""
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            pairs[name] = float(value)
        except ValueError:
            pairs[name] = -1.0
        if not equals or not pairs[name] > 0:
            raise BadInput(f"{option}: write METRIC=VALUE with a value above 0, not {text}")
    return pairs


def _comparisons(sides: Any, known: dict[str, Metric], primary: str) -> list[Comparison]:
    from harness.results.stats.compare import compare_cells

    *new, base = sides.cells
    told = [compare_cells(each, base, known, primary) for each in new]
    for each in told:
        if not each.findings:
            raise BadInput(
                f"{each.new.label}, {base.label}: have no metric in common; compare runs that "
                "trained, or that validated on images"
            )
    return told


def _reproductions(sides: Any, margins: dict[str, float]) -> list[Reproduction]:
    from harness.results.stats.reproduce import reproduce

    return [
        reproduce(cell, reference, margins.get(reference.metric))
        for reference in sides.references
        for cell in sides.cells
    ]


def _gates(
    max_slowdown_pct: float | None, min_top1_pct: float | None, sides: Any, told: list[Comparison]
) -> list[Check]:
    from harness.results.stats import gate

    checks = []
    if max_slowdown_pct is not None:
        if not told:
            raise BadInput("--max-slowdown-pct: needs a second side to hold the first against")
        checks += [gate.max_slowdown(each, max_slowdown_pct) for each in told]
    if min_top1_pct is not None:
        judged = [each.new for each in told] or sides.cells
        checks += [gate.min_top1(cell, min_top1_pct) for cell in judged]
    return checks


def _say(checks: list[Check], told: list[Comparison]) -> None:
    """All in one line."""
    from harness.results.stats import gate

    code = gate.exit_code(checks)
    if len(checks) > 1 or code != EXIT_GOOD:
        word = {0: "good", 1: "FAILED"}.get(code, "cannot tell")
        telling = checks[:1] if checks[0].exit_code else checks[1:]
        said = "; ".join(check.message for check in telling)
        hint = " (--anyway judges it all the same)" if checks[0].exit_code else ""
        (out if code == EXIT_GOOD else err).print(f"{word}: {said}{hint}")
    elif told:
        out.print("; ".join(_sentence(each) for each in told))


def _sentence(told: Comparison) -> str:
    said = ", ".join(f"{found.metric.title} {found.word}" for found in told.findings)
    return f"{told.new.label}: {said}"
