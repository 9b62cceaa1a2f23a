"""A comparison as a gate for CI: checks with an exit code, and as JUnit's XML."""

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
from harness.results.stats.statistics import ALPHA, runs_to_tell
from harness.system.console import count
from harness.system.files import write_atomic


@dataclass(frozen=True)
class Check:
    """One condition: 0 holds, 1 does not, 3 cannot be told."""

    name: str
    exit_code: int
    message: str


def max_slowdown(told: Comparison, most_pct: float) -> Check:
    """Whether `new` is surely not slower than `base` by more than so many percent.

    Raises:
        BadInput: a side tells no throughput.
    """
    found = told.finding("images_per_second")
    if found is None or found.estimate is None:
        raise BadInput("--max-slowdown-pct: one side has no throughput")
    bound = math.log1p(-most_pct / 100)
    low, high = found.interval(1 - 2 * ALPHA) or (math.nan, math.nan)
    seen = f"throughput {found.difference:+.1f} % ({low:+.1f} to {high:+.1f})"
    if found.estimate.p_above(bound) <= ALPHA:
        return Check("slowdown", EXIT_GOOD, f"{seen}: not slower by more than {most_pct:g} %")
    if found.estimate.p_below(bound) <= ALPHA:
        return Check("slowdown", EXIT_FAILED, f"{seen}: slower by more than {most_pct:g} %")
    needed = runs_to_tell(found.new, found.base, bound)
    more = f"; {count(needed, 'run')} of the new one may tell" if needed else "; repeat both"
    doubtful = f"{seen}: cannot tell whether slower by more than {most_pct:g} %{more}"
    return Check("slowdown", EXIT_CANNOT_TELL, doubtful)


def min_top1(cell: Cell, least_pct: float) -> Check:
    """Whether the mean top-1 of the runs is at least so high: as measured, no inference.

    Raises:
        BadInput: the runs tell no accuracy.
    """
    found = sample(metrics()["top1"], cell.runs)
    if found is None:
        raise BadInput(f"--min-top1-pct: {cell.label} tells no accuracy")
    seen = f"top-1 {found.mean:.2f} % ({count(found.n, 'seed')})"
    if found.mean >= least_pct:
        return Check("top-1", EXIT_GOOD, f"{seen}: at least {least_pct:g} %")
    return Check("top-1", EXIT_FAILED, f"{seen}: below {least_pct:g} %")


def reproduced(told: Reproduction) -> Check:
    """Whether the publication was reproduced."""
    code = {"reproduced": EXIT_GOOD, "not reproduced": EXIT_FAILED}
    return Check(
        f"ref:{told.reference.id}", code.get(told.word, EXIT_CANNOT_TELL),
        f"{told.metric.title} {told.metric.outer(told.ours.mean):.2f} {told.metric.unit} beside "
        f"{told.reference.value:g} published: {told.word}",
    )  # fmt: skip


def comparable(doubts: Sequence[str], anyway: bool) -> Check:
    """Whether the sides may be compared at all."""
    if not doubts:
        return Check("comparable", EXIT_GOOD, "comparable")
    code = EXIT_GOOD if anyway else EXIT_CANNOT_TELL
    return Check("comparable", code, f"not comparable: {'; '.join(doubts)}")


def exit_code(checks: Sequence[Check]) -> int:
    """Of all: what cannot be told beats a good end, a failure beats both.

    But where the sides are not comparable, no verdict on them counts.
    """
    codes = [check.exit_code for check in checks]
    if checks and checks[0].name == "comparable" and codes[0] != EXIT_GOOD:
        return EXIT_CANNOT_TELL
    return EXIT_FAILED if EXIT_FAILED in codes else max(codes, default=EXIT_GOOD)


def write_junit(path: Path, checks: Sequence[Check]) -> None:
    """Write the checks as a test suite that CI systems show.

    Raises:
        BadInput: the file cannot be written.
    """
    failures = sum(check.exit_code == EXIT_FAILED for check in checks)
    errors = sum(check.exit_code == EXIT_CANNOT_TELL for check in checks)
    told = {"tests": len(checks), "failures": failures, "errors": errors}
    suite = ET.Element(
        "testsuite", {"name": "harness compare"} | {k: str(v) for k, v in told.items()}
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
    except (OSError, ValueError) as error:  # of a value: a path such as `.` names no file
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{path}: {reason}; give a file that can be written") from None
