"""Checks on a comparison that serve as a gate in CI: exit codes and JUnit XML."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import EXIT_CANNOT_TELL, EXIT_FAILED, EXIT_GOOD, BadInput
from harness.results.stats.compare import Cell, Comparison
from harness.results.stats.metrics import metrics, sample
from harness.results.stats.reproduce import Reproduction
from harness.results.stats.statistics import ALPHA, runs_needed
from harness.system.console import count
from harness.system.files import write_atomic


@dataclass(frozen=True)
class Check:
    """A condition and its exit code: 0 if it holds, 1 if not, 3 if that cannot be decided."""

    name: str
    exit_code: int
    message: str


def max_slowdown(comparison: Comparison, most_pct: float) -> Check:
    """Check that `new` is certainly not slower than `base` by more than `most_pct` percent.

    Raises:
        BadInput: a side has no throughput.
    """
    finding = comparison.finding("images_per_second")
    if finding is None or finding.estimate is None:
        raise BadInput("--max-slowdown-pct: one side has no throughput")
    bound = math.log1p(-most_pct / 100)
    low, high = finding.interval(1 - 2 * ALPHA) or (math.nan, math.nan)
    change = f"throughput {finding.difference:+.1f} % ({low:+.1f} to {high:+.1f})"
    if finding.estimate.p_above(bound) <= ALPHA:
        return Check("slowdown", EXIT_GOOD, f"{change}: not slower by more than {most_pct:g} %")
    if finding.estimate.p_below(bound) <= ALPHA:
        return Check("slowdown", EXIT_FAILED, f"{change}: slower by more than {most_pct:g} %")
    needed = runs_needed(finding.new, finding.base, bound)
    more = f"; {count(needed, 'run')} of the new one may tell" if needed else "; repeat both"
    message = f"{change}: cannot tell whether slower by more than {most_pct:g} %{more}"
    return Check("slowdown", EXIT_CANNOT_TELL, message)


def min_top1(cell: Cell, least_pct: float) -> Check:
    """Check that the measured mean top-1 of the runs is at least `least_pct`; no inference.

    Raises:
        BadInput: the runs have no accuracy.
    """
    top1 = sample(metrics()["top1"], cell.runs)
    if top1 is None:
        raise BadInput(f"--min-top1-pct: {cell.label} has no accuracy")
    message = f"top-1 {top1.mean:.2f} % ({count(top1.n, 'seed')})"
    if top1.mean >= least_pct:
        return Check("top-1", EXIT_GOOD, f"{message}: at least {least_pct:g} %")
    return Check("top-1", EXIT_FAILED, f"{message}: below {least_pct:g} %")


def reproduced(result: Reproduction) -> Check:
    """Check that a published result was reproduced."""
    metric, reference = result.metric, result.reference
    code = {"reproduced": EXIT_GOOD, "not reproduced": EXIT_FAILED}
    return Check(
        f"ref:{reference.id}", code.get(result.verdict, EXIT_CANNOT_TELL),
        f"{metric.title} {metric.inverse(result.ours.mean):.2f} {metric.unit} beside "
        f"{reference.value:g} published: {result.verdict}",
    )  # fmt: skip


def comparable(doubts: Sequence[str], anyway: bool) -> Check:
    """Check that there are no doubts, or that --anyway overrides them."""
    if not doubts:
        return Check("comparable", EXIT_GOOD, "comparable")
    code = EXIT_GOOD if anyway else EXIT_CANNOT_TELL
    return Check("comparable", code, f"not comparable: {'; '.join(doubts)}")


def exit_code(checks: Sequence[Check]) -> int:
    """Return the exit code of all checks: any failure, else any undecided one, else good.

    If the sides are not comparable, the other checks do not count.
    """
    codes = [check.exit_code for check in checks]
    if checks and checks[0].name == "comparable" and codes[0] != EXIT_GOOD:
        return EXIT_CANNOT_TELL
    return EXIT_FAILED if EXIT_FAILED in codes else max(codes, default=EXIT_GOOD)


def write_junit(path: Path, checks: Sequence[Check]) -> None:
    """Write the checks as a JUnit test suite, which CI systems show.

    Raises:
        BadInput: the file cannot be written.
    """
    failures = sum(check.exit_code == EXIT_FAILED for check in checks)
    errors = sum(check.exit_code == EXIT_CANNOT_TELL for check in checks)
    counts = {"tests": len(checks), "failures": failures, "errors": errors}
    suite = ET.Element(
        "testsuite", {"name": "harness compare"} | {k: str(v) for k, v in counts.items()}
    )
    for check in checks:
        case = ET.SubElement(suite, "testcase", classname="harness.compare", name=check.name)
        if check.exit_code == EXIT_GOOD:
            ET.SubElement(case, "system-out").text = check.message
        else:
            kind = "failure" if check.exit_code == EXIT_FAILED else "error"
            ET.SubElement(case, kind, message=check.message)
    tree = ET.ElementTree(suite)
    ET.indent(tree)
    try:
        write_atomic(path, lambda part: tree.write(part, encoding="utf-8", xml_declaration=True))
    except (OSError, ValueError) as error:  # ValueError: a path such as `.` has no file name
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{path}: {reason}; give a file that can be written") from None
