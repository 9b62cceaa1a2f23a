"""`harness compare`: is this better, worse or the same, and how sure is that?"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.commands.parser import teaching
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

A single run says little: start each side three times or more."""


def add(verbs: Any) -> None:
    """The verb's words."""
    says = "runs with runs or with published results: verdicts and how sure they are"
    compare = teaching(verbs, "compare", help=says, description=DESCRIPTION)
    compare.add_argument(
        "addresses", nargs="+", metavar="ADDRESS",
        help="run folder, glob, wandb:..., offline W&B folder, ref:ID; `vs` divides sides",
    )  # fmt: skip
    compare.add_argument(
        "--testing", action="append", default=[], metavar="KEY",
        help="what is meant to differ, such as engine.compile or torch; may be repeated",
    )  # fmt: skip
    compare.add_argument(
        "--primary", default="images_per_second", metavar="METRIC",
        help="the metric that is asked for first (default images_per_second); the others' "
        "verdicts are adjusted for their number",
    )  # fmt: skip
    compare.add_argument(
        "--margin", action="append", default=[], metavar="METRIC=VALUE", type=_pair,
        help="what counts as equal: points for accuracy, percent for the rest, as top1=0.25",
    )  # fmt: skip
    compare.add_argument(
        "--assume-std", action="append", default=[], metavar="METRIC=VALUE", type=_pair,
        help="standard deviation from run to run, where no side has repeats",
    )  # fmt: skip
    compare.add_argument(
        "--target-top1-pct", type=float, metavar="PCT", help="compare the training time to this"
    )
    compare.add_argument(
        "--anyway", action="store_true", help="judge even what is not comparable (else exit 3)"
    )
    gate = compare.add_argument_group("gate", "exit code 0 holds, 1 does not, 3 cannot be told")
    gate.add_argument("--max-slowdown-pct", type=float, metavar="PCT", help="of throughput")
    gate.add_argument("--min-top1-pct", type=float, metavar="PCT", help="mean of the new runs")
    gate.add_argument("--junit", type=Path, metavar="FILE", help="write the checks as JUnit XML")
    compare.add_argument(
        "--html", type=Path, metavar="FILE",
        help="write a page: one file, no network needed; of one side alone, its report",
    )  # fmt: skip
    compare.set_defaults(verb=_compare)


def _pair(text: str) -> tuple[str, float]:
    """argparse's type of `top1=0.25`."""
    name, found, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not found or not number > 0:
        raise argparse.ArgumentTypeError(f"write METRIC=VALUE with a value above 0, not {text}")
    return name, number


def _compare(options: argparse.Namespace) -> None:
    from harness.results import show_compare
    from harness.results.sides import arms, check_testing
    from harness.results.stats import gate, metrics

    write_page = _page_writer() if options.html else None
    known = metrics.with_settings(
        metrics.metrics(options.target_top1_pct), dict(options.margin), dict(options.assume_std)
    )
    known = metrics.first(known, options.primary)
    sides = arms(options.addresses, report=bool(options.html))
    check_testing(options.testing, sides.cells)
    told = _comparisons(options, sides, known)
    reproductions = _reproductions(options, sides)
    for each in told:
        show_compare.show_comparison(each, options.testing, judge=options.anyway or not each.doubts)
    for one in reproductions:
        show_compare.show_reproduction(one, judge=options.anyway or not one.doubts)
    unlike = [each.doubts for each in told] + [one.doubts for one in reproductions]
    doubts = dict.fromkeys(doubt for found in unlike for doubt in found)
    checks = [gate.comparable(list(doubts), options.anyway)]
    checks += _gates(options, sides, told, reproductions)
    if options.junit:
        gate.write_junit(options.junit, checks)
    _say(checks, told)
    if write_page:
        write_page(
            options.html, sides.cells, told, reproductions, testing=options.testing,
            judge=options.anyway,
        )  # fmt: skip
        out.print(f"page: {options.html}")
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


def _comparisons(
    options: argparse.Namespace, sides: Any, known: dict[str, Metric]
) -> list[Comparison]:
    from harness.results.stats.compare import compare_cells

    *new, base = sides.cells
    told = [compare_cells(each, base, known, options.primary) for each in new]
    for each in told:
        if not each.findings:
            raise BadInput(
                f"{each.new.label}, {base.label}: have no metric in common; compare runs that "
                "trained, or that validated on images"
            )
    return told


def _reproductions(options: argparse.Namespace, sides: Any) -> list[Reproduction]:
    from harness.results.stats.reproduce import reproduce

    margins = dict(options.margin)
    return [
        reproduce(cell, reference, margins.get(reference.metric))
        for reference in sides.references
        for cell in sides.cells
    ]


def _gates(
    options: argparse.Namespace, sides: Any, told: list[Comparison],
    reproductions: list[Reproduction],
) -> list[Check]:  # fmt: skip
    from harness.results.stats import gate

    checks = [gate.reproduced(each) for each in reproductions]
    if options.max_slowdown_pct is not None:
        if not told:
            raise BadInput("--max-slowdown-pct: needs a second side to hold the first against")
        checks += [gate.max_slowdown(each, options.max_slowdown_pct) for each in told]
    if options.min_top1_pct is not None:
        judged = [each.new for each in told] or sides.cells
        checks += [gate.min_top1(cell, options.min_top1_pct) for cell in judged]
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
