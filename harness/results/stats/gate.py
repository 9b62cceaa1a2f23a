"""Checks on a comparison that serve as a gate in CI: exit codes and JUnit XML."""

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import EXIT_CANNOT_TELL, EXIT_FAILED, EXIT_GOOD, BadInput
from harness.results.stats.compare import Cell, Comparison
from harness.results.stats.metrics import metrics, sample
from harness.results.stats.statistics import ALPHA, runs_needed
from harness.system.console import count
from harness.system.files import write_atomic


@dataclass(frozen=True)
class Check:
    """A condition and its exit code: 0 if it holds, 1 if not, 3 if that cannot be decided."""

    name: str
    exit_code: int
    message: str


def checks(
    cells: Sequence[Cell], comparisons: Sequence[Comparison], *, anyway: bool,
    max_slowdown_pct: float | None, min_top1_pct: float | None,
) -> list[Check]:  # fmt: skip
    """Return the checks of a comparison: first whether it is one, then reproductions and gates.

    Raises:
        BadInput: a gate needs what the runs do not have.
    """
    doubts = dict.fromkeys(doubt for item in comparisons for doubt in item.doubts)
    code = EXIT_CANNOT_TELL if doubts and not anyway else EXIT_GOOD
    message = f"not comparable: {'; '.join(doubts)}" if doubts else "comparable"
    ours = [item for item in comparisons if not item.base.reference]
    found = [Check("comparable", code, message)]
    found += [_reproduced(item) for item in comparisons if item.base.reference]
    if max_slowdown_pct is not None:
        if not ours:
            raise BadInput("--max-slowdown-pct: needs two sides; name a second address")
        found += [_max_slowdown(item, max_slowdown_pct) for item in ours]
    if min_top1_pct is not None:
        found += [_min_top1(cell, min_top1_pct) for cell in [item.new for item in ours] or cells]
    return found


def _max_slowdown(comparison: Comparison, most_pct: float) -> Check:
    finding = comparison.finding("images_per_second")
    if finding is None or finding.estimate is None:
        raise BadInput("--max-slowdown-pct: one side has no throughput")
    bound = math.log1p(-most_pct / 100)
    low, high = finding.interval(1 - 2 * ALPHA) or (math.nan, math.nan)
    change = f"throughput {finding.difference:+.1f} % ({low:+.1f} to {high:+.1f})"
    slower = f"slower by more than {most_pct:g} %"
    if finding.estimate.p_above(bound) <= ALPHA:
        return Check("slowdown", EXIT_GOOD, f"{change}: not {slower}")
    if finding.estimate.p_below(bound) <= ALPHA:
        return Check("slowdown", EXIT_FAILED, f"{change}: {slower}")
    needed = runs_needed(finding.new, finding.base, bound)
    more = f"{count(needed, 'run')} of the new one may tell" if needed else "repeat both"
    return Check("slowdown", EXIT_CANNOT_TELL, f"{change}: cannot tell whether {slower}; {more}")


def _min_top1(cell: Cell, least_pct: float) -> Check:
    # The measured mean counts, without inference.
    top1 = sample(metrics()["top1"], cell.runs)
    if top1 is None:
        raise BadInput(f"--min-top1-pct: {cell.label} has no accuracy")
    code, is_ = (EXIT_GOOD, "at least") if top1.mean >= least_pct else (EXIT_FAILED, "below")
    message = f"top-1 {top1.mean:.2f} % ({count(top1.n, 'seed')}): {is_} {least_pct:g} %"
    return Check("top-1", code, message)


def _reproduced(comparison: Comparison) -> Check:
    (finding,) = comparison.findings
    metric, verdict = finding.metric, finding.verdict
    codes = {"reproduced": EXIT_GOOD, "not reproduced": EXIT_FAILED}
    ours, theirs = metric.inverse(finding.new.mean), metric.inverse(finding.base.mean)
    message = f"{metric.title} {ours:.2f} {metric.unit} beside {theirs:g} published: {verdict}"
    return Check(comparison.base.label, codes.get(verdict, EXIT_CANNOT_TELL), message)


def exit_code(checks: Sequence[Check]) -> int:
    """Return the exit code of all checks: any failure, else any undecided one, else good.

    If the sides are not comparable, the other checks do not count.
    """
    codes = [check.exit_code for check in checks]
    return codes[0] or (EXIT_FAILED if EXIT_FAILED in codes else max(codes))


def summary(checks: Sequence[Check]) -> str:
    """Return the checks that decide, in one line."""
    word = {EXIT_GOOD: "good", EXIT_FAILED: "FAILED"}.get(exit_code(checks), "cannot tell")
    if checks[0].exit_code:
        return f"{word}: {checks[0].message} (--anyway compares them all the same)"
    return f"{word}: {'; '.join(check.message for check in checks[1:])}"


def write_junit(path: Path, checks: Sequence[Check]) -> None:
    """Write the checks as a JUnit test suite, for CI systems; raise BadInput if that fails."""
    codes = [check.exit_code for check in checks]
    suite = ET.Element(
        "testsuite", name="harness compare", tests=str(len(checks)),
        failures=str(codes.count(EXIT_FAILED)), errors=str(codes.count(EXIT_CANNOT_TELL)),
    )  # fmt: skip
    for check in checks:
        case = ET.SubElement(suite, "testcase", classname="harness.compare", name=check.name)
        if check.exit_code == EXIT_GOOD:
            ET.SubElement(case, "system-out").text = check.message
        else:
            kind = "failure" if check.exit_code == EXIT_FAILED else "error"
            ET.SubElement(case, kind, message=check.message)
    ET.indent(tree := ET.ElementTree(suite))
    try:
        write_atomic(path, lambda part: tree.write(part, encoding="utf-8", xml_declaration=True))
    except (OSError, ValueError) as error:  # ValueError: a path such as `.` has no file name
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{path}: {reason}; give a file that can be written") from None
