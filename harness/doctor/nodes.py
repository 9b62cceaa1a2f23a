"""Join the reports of several nodes into one table, and name the nodes that are outliers."""

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from rich.table import Column, Table
from rich.text import Text

from harness.doctor import limits
from harness.doctor.check import Check, Status, worst
from harness.doctor.report import COLORS, Node, Report
from harness.doctor.software import MUST_AGREE, SHOULD_AGREE
from harness.errors import EXIT_FAILED, EXIT_GOOD, BadInput
from harness.system.console import count, out

SAME = ("gpus", "cores", *MUST_AGREE, *SHOULD_AGREE)  # facts that should be equal on all nodes

COLUMNS = {
    "gpus": "GPUs",
    "cores": "cores",
    "matmul_tflops": "TFLOP/s",
    "read_images_per_second": "reads images/s",
    "run_folder_mb_per_s": "writes MB/s",
    "temporary_folder_mb_per_s": "temporary MB/s",
    "driver": "driver",
}
"""The table's columns: fact -> heading."""


class Finding(NamedTuple):
    """One fault of a node, or one way in which it differs from the others."""

    host: str
    status: Status
    message: str


def join(paths: Sequence[Path]) -> int:
    """Print the table of all nodes and the outliers; return the exit code, 1 on red.

    Raises:
        BadInput: a file cannot be read.
    """
    nodes = [node for path in paths for node in read(path)]
    findings = [
        Finding(node.host, "red", f"{check.name}: {check.value}; -> {check.do}")
        for node in nodes
        for check in node.checks
        if check.status == "red"
    ] + outliers(nodes)
    _print_table(nodes)
    for host, status, message in findings:
        out.print(Text(f"{status}: {host}: {message}", COLORS[status]))
    bad = {finding.host for finding in findings if finding.status == "red"}
    unlike = {finding.host for finding in findings} - bad
    total, color = count(len(nodes), "node"), "red" if bad else "yellow" if unlike else "green"
    verdict = f"{total}, all alike"
    if bad:
        left_out = ",".join(sorted(bad))
        verdict = f"{len(bad)} of {total}: fix or leave them out: sbatch --exclude {left_out}"
    elif unlike:
        verdict = f"of {total}, unlike the others: {', '.join(sorted(unlike))}"
    out.print(Text(f"{color}: {verdict}", color))
    return EXIT_FAILED if bad else EXIT_GOOD


def read(path: Path) -> list[Node]:
    """Return the nodes of one report; a file without a valid report is one node with a red check.

    Raises:
        BadInput: the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; give files of harness doctor --json") from None
    lines = [line for line in text.splitlines() if line.startswith("{")]
    try:
        report = Report.model_validate_json(lines[-1] if lines else "")
    except ValidationError:
        last_line = text.strip().splitlines()[-1][:200] if text.strip() else "the file is empty"
        value = f"{path} holds no report: {last_line}"
        do = "harness doctor did not finish there: see its log, or leave the node out"
        return [Node(host=path.stem, facts={}, checks=[Check("report", "red", value, do)])]
    return [Node(host=report.host, facts=report.facts, checks=report.checks), *report.other_nodes]


def outliers(nodes: Sequence[Node]) -> list[Finding]:
    """Return how nodes differ from the others: software, hardware, or slower by a stated margin.

    A rate is compared with the median of the *other* nodes, so that one bad node of two shows too.
    """
    nodes = [node for node in nodes if node.facts]
    findings = [finding for name in SAME for finding in _unequal(nodes, name)]
    on_cpu = any(node.facts.get("gpus") == "none" for node in nodes)
    margins_pct = {"matmul_tflops": limits.CPU_OUTLIER_PCT} if on_cpu else {}
    for name, margin_pct in (limits.OUTLIERS | margins_pct).items():
        rated = [node for node in nodes if node.facts.get(name) is not None]
        for node in rated:
            rate = node.facts[name]
            others = [other.facts[name] for other in rated if other is not node]
            usual = statistics.median(others or [rate])
            if rate < (1 - margin_pct / 100) * usual:
                message = (
                    f"{name} {rate:,.4g}, {100 * (1 - rate / usual):.0f} % below the median of the "
                    f"others, {usual:,.4g} (margin {margin_pct:.0f} %)"
                )
                findings.append(Finding(node.host, "yellow", message))
    return findings


def _unequal(nodes: Sequence[Node], name: str) -> list[Finding]:
    known = [(node.host, node.facts.get(name)) for node in nodes]
    values = [(host, "unknown" if value is None else str(value)) for host, value in known]
    counts = Counter(value for _, value in values)
    if len(counts) < 2:
        return []
    (usual, most), (_, second) = counts.most_common(2)
    # If no value has the majority, it is unknown which nodes are wrong: all are named.
    of_others = usual if most > second else "another"
    status: Status = "red" if name in MUST_AGREE else "yellow"
    return [
        Finding(host, status, f"{name} is {value}, on others {of_others}")
        for host, value in values
        if value != usual or most == second
    ]


def _print_table(nodes: Sequence[Node]) -> None:
    shown = [name for name in COLUMNS if any(node.facts.get(name) is not None for node in nodes)]
    left = ("gpus", "driver")
    columns = [Column(COLUMNS[n], justify="left" if n in left else "right") for n in shown]
    table = Table("node", "status", *columns, "red and yellow")
    for node in nodes:
        status = worst(node.checks)
        bad = ", ".join(check.name for check in node.checks if check.status in ("red", "yellow"))
        facts = (_cell(node.facts.get(name)) for name in shown)
        table.add_row(Text(node.host), Text(status, COLORS[status]), *map(Text, facts), Text(bad))
    out.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return "" if value is None else str(value)
