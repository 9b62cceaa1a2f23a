"""The report of `harness doctor`: all checks and facts, as one JSON object or one table."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.table import Table
from rich.text import Text

from harness.doctor.check import SEVERITY, Check, Facts, Status
from harness.system.console import count, out

SCHEMA_VERSION = 1
COLORS: dict[Status, str] = {
    "green": "green", "yellow": "yellow", "red": "bold red", "not checked": "dim",
}  # fmt: skip


class Node(BaseModel):
    """The checks of one host, and the facts that `doctor nodes` compares."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    facts: dict[str, Any]  # flat, unit in each name, null where unknown
    checks: list[Check]


class Report(Node):
    """What `harness doctor --json` prints: the first host, the job-wide checks, the other hosts."""

    schema_version: int = SCHEMA_VERSION
    verdict: Status  # the worst of all checks
    ranks: int  # processes that took part, on all hosts
    took_s: float  # age of the printing process
    other_nodes: list[Node] = []

    def all_checks(self) -> list[Check]:
        """Return the checks of all hosts, those of the first host first."""
        return [*self.checks, *(check for node in self.other_nodes for check in node.checks)]


def comparable_facts(ranks: Sequence[Facts]) -> dict[str, Any]:
    """Return the facts of a node that `doctor nodes` compares, merged from its ranks' facts.

    Read rates are summed over the ranks; for the matrix product, the slowest counts.
    """
    first, reads = ranks[0], [facts["data"] for facts in ranks]
    names = sorted({gpu["name"] for gpu in first["gpus"]})
    disks = {
        f"{disk}_{key.removeprefix('write_')}": first[disk].get(key)
        for disk in ("run_folder", "cache_folder", "temporary_folder")
        for key in ("free_gib", "write_mb_per_s")
    }
    collectives = ("all_reduce_ms", "all_reduce_gb_per_s", "all_reduce_latency_us")
    return {
        "local_ranks": first["local_ranks"],
        "gpus": f"{first['torch_gpus']} x {' and '.join(names)}" if names else "none",
        "cores": len(set().union(*(facts["cores"] for facts in ranks))),
        "matmul_tflops": min(min(facts["matmul_tflops"]) for facts in ranks),
        "precision": first["precision"],
        "images_per_second_bound": sum(facts["images_per_second_bound"] for facts in ranks),
        "shm_free_gib": first["shm_free_gib"],
        "open_files": min(facts["open_files"] for facts in ranks),
        **disks,
        "read_images_per_second": _sum(reads, "images_per_second"),
        "read_mb_per_s": _sum(reads, "mb_per_s"),
        "read_cached_pct": reads[0].get("cached_pct"),
        **{name: first.get(name) for name in collectives},
        "clock_offset_s": first.get("clock_offset_s", [None])[0],
        **first["versions"],
        "driver": first["driver"] or first["versions"]["driver"],
    }


def show(report: Report, command: str) -> None:
    """Print one line per check, where it is worst; then the verdict and next command."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for name in dict.fromkeys(check.name for check in report.all_checks()):
        status, text = _line(report, name)
        table.add_row(Text(status, COLORS[status]), name, Text(text))
        if not out.is_terminal:
            out.print(Text(f"{status:<12}{name:<19}{text}"))
    if out.is_terminal:
        out.print(table)
    out.print(Text(_verdict(report, command), COLORS[report.verdict]))


def _verdict(report: Report, command: str) -> str:
    where = count(1 + len(report.other_nodes), "node") + ", " + count(report.ranks, "rank")
    took = f"({where}, {report.took_s:.0f} s)"
    worst = [check.name for check in report.all_checks() if check.status == report.verdict]
    names = ", ".join(dict.fromkeys(worst))
    if report.verdict == "red":
        return f"red: {names} {took}; fix this, then run harness doctor again"
    if report.verdict == "yellow":
        return f"yellow: {names} {took}; it will run. next: {command}"
    return f"green {took}. next: {command}"


def _line(report: Report, name: str) -> tuple[Status, str]:
    """Return status and text of the check with this name, for the host where it is worst."""
    checks = [check for check in report.all_checks() if check.name == name]
    worst_check = max(checks, key=lambda check: SEVERITY[check.status])
    status, host, text = worst_check.status, worst_check.host, worst_check.value
    text += f"; -> {worst_check.do}" if worst_check.do else ""
    if report.other_nodes and host:
        alike = sum(check.status == status for check in checks) - 1
        others = f" (and {count(alike, 'node')} more {status})" if alike else ""
        text = f"{host}{others}: {text}"
    return status, text


def _sum(reads: Sequence[Facts], name: str) -> float | None:
    values = [read[name] for read in reads if name in read]
    return sum(values) if values else None
