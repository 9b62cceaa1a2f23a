"""The verb `harness compare`: verdicts on runs, and gates for CI."""

import sys
from pathlib import Path

from typer import Argument, Option

from harness.commands.parser import group, verb
from harness.errors import BadInput
from harness.system.console import err, out

DESCRIPTION = """\
Compare runs with runs, or with published results. The last side is the base, with which every
other side is compared.

  harness compare runs/a-s0 runs/b-s0                     two runs
  harness compare 'runs/a-s*' 'runs/b-s*'                 seeds of two recipes
  harness compare runs/a-s* vs runs/b-s*                  the same, without quotes
  harness compare 'runs/a-s*' ref:goyal2017-resnet50-b256 does it reproduce?
  harness compare 'wandb:team/bench?group=G' runs/b-s0    a run group from W&B
  harness compare NEW BASE --max-slowdown-pct 3           as a gate
  harness compare runs/a-s0 --html a.html                 the report of one run

A single run says little: start each side three times or more. With a gate, the exit code is 0 if
it holds, 1 if it does not, 3 if that cannot be decided."""

app = group()


@verb(app, DESCRIPTION)
def compare(
    addresses: list[str] = Argument(metavar="ADDRESS",
        help="run folder, glob, wandb:..., offline W&B folder, ref:ID; `vs` separates sides"),
    testing: list[str] = Option([], metavar="KEY",
        help="what is meant to differ, such as engine.compile or torch; may be repeated"),
    primary: str = Option("images_per_second", metavar="METRIC",
        help="the metric that matters most; verdicts on the others are adjusted for their number"),
    margin: list[str] = Option([], metavar="METRIC=VALUE",
        help="what counts as equal: points for accuracy, percent for the rest, as top1=0.25"),
    assume_std: list[str] = Option([], metavar="METRIC=VALUE",
        help="standard deviation between runs, used if no side has repeats"),
    target_top1_pct: float | None = Option(None, metavar="PCT",
        help="compare the training time to this accuracy"),
    anyway: bool = Option(False, "--anyway",
        help="give verdicts even if the sides are not comparable (else exit 3)"),
    max_slowdown_pct: float | None = Option(None, metavar="PCT",
        help="gate: largest loss of throughput"),
    min_top1_pct: float | None = Option(None, metavar="PCT",
        help="gate: least mean top-1 of the new runs"),
    junit: Path | None = Option(None, metavar="FILE", help="gate: write the checks as JUnit XML"),
    html: Path | None = Option(None, metavar="FILE",
        help="write an HTML page: one file, no network needed; for one side alone, its report"),
) -> None:  # fmt: skip
    """Compare runs with runs or with published results: verdicts with confidence intervals."""
    from harness.results import show_compare
    from harness.results.sides import check_testing, compare_sides, read_sides
    from harness.results.stats import gate, metrics

    try:
        if html:
            from harness.results.page.page import write_page
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise BadInput("--html needs matplotlib: pip install 'imagenet-harness[page]'") from None
    margins, stds = _pairs("--margin", margin), _pairs("--assume-std", assume_std)
    known = metrics.with_settings(metrics.metrics(target_top1_pct), margins, stds, primary)
    cells, references = read_sides(addresses, report=bool(html))
    check_testing(testing, cells)
    comparisons = compare_sides(cells, references, known, primary, margins)
    for comparison in comparisons:
        show_compare.show_comparison(comparison, testing, anyway=anyway)
    checks = gate.checks(
        cells, comparisons, anyway=anyway, max_slowdown_pct=max_slowdown_pct,
        min_top1_pct=min_top1_pct,
    )  # fmt: skip
    if junit:
        gate.write_junit(junit, checks)
    code = gate.exit_code(checks)
    if len(checks) > 1 or code:
        (err if code else out).print(gate.summary(checks))
    elif comparisons:
        out.print("; ".join(map(show_compare.verdicts, comparisons)))
    if html:
        write_page(html, cells, comparisons, testing=testing, anyway=anyway)
        out.print(f"page: {html}")
    if code:
        sys.exit(code)


def _pairs(option: str, texts: list[str]) -> dict[str, float]:
    pairs = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            pairs[name] = float(value)
        except ValueError:
            pairs[name] = -1.0
        if not pairs[name] > 0:
            raise BadInput(f"{option}: write METRIC=VALUE with a value above 0, not {text}")
    return pairs
