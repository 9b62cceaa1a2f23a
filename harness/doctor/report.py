"""Report: everything that the doctor found, as one JSON object and as one screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.table import Table
from rich.text import Text

from harness.doctor.check import SEVERITY, Check, Facts, Status, worst
from harness.system.console import count, out

SCHEMA_VERSION = 1
COLOURS: dict[Status, str] = {
    "green": "green", "yellow": "yellow", "red": "bold red", "not checked": "dim",
}  # fmt: skip


class Node(BaseModel):
    """One host.

    Attributes:
        facts: what `doctor nodes` compares: flat, unit in each name, null where not known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    facts: dict[str, Any]
    checks: list[Check]


class Report(Node):
    """What `harness doctor --json` prints: the first host, the checks of all together, the others.

    Attributes:
        verdict: the worst status of all checks.
        ranks: processes that took part, on all hosts.
        other_nodes: the hosts of a job on several, besides that of rank 0.
    """

    schema_version: int = SCHEMA_VERSION
    verdict: Status
    ranks: int
    took_s: float
    other_nodes: list[Node] = []

    def all_checks(self) -> list[Check]:
        """Of all hosts, those of the first host first."""
        return [*self.checks, *(check for node in self.other_nodes for check in node.checks)]


def compared(ranks: Sequence[Facts]) -> dict[str, Any]:
    """The facts of a node that can be compared with another's, from those of its ranks.

    Rates of reading add up over the ranks; of the matrix product, the slowest counts.
    """
    first = ranks[0]
    reads = [facts["data"] for facts in ranks]
    names = sorted({gpu["name"] for gpu in first["gpus"]})
    disks = {
        f"{disk}_{fact}": first[disk].get(key)
        for disk in ("run_folder", "cache_folder", "temporary_folder")
        for fact, key in (("free_gib", "free_gib"), ("mb_per_s", "write_mb_per_s"))
    }
    together = ("all_reduce_ms", "all_reduce_gb_per_s", "all_reduce_latency_us")
    return {
        "local_ranks": first["local_ranks"],
        "gpus": f"{first['gpus_of_torch']} x {' and '.join(names)}" if names else "none",
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
        **{name: first.get(name) for name in together},
        "clock_offset_s": first.get("clock_offset_s", [None])[0],
        **first["versions"],
        "driver": first["driver"] or first["versions"]["driver"],
    }


def show(report: Report, command: str) -> None:
    """One line per check, the worst host's; the verdict last, with what to type next."""
    lines = [_line(report, name) for name in _names(report)]
    if out.is_terminal:
        table = Table(box=None, pad_edge=False, show_header=False)
        for status, name, text in lines:
            table.add_row(Text(status, COLOURS[status]), name, Text(text))
        out.print(table)
    else:
        for status, name, text in lines:
            out.print(Text(f"{status:<12}{name:<19}{text}"))
    out.print(Text(verdict(report, command), COLOURS[report.verdict]))


def verdict(report: Report, command: str) -> str:
    """The last line: how it stands, and what to type next."""
    bad = {
        status: [check.name for check in report.all_checks() if check.status == status]
        for status in ("red", "yellow")
    }
    where = count(1 + len(report.other_nodes), "node") + ", " + count(report.ranks, "rank")
    took = f"({where}, {report.took_s:.0f} s)"
    names = {status: ", ".join(dict.fromkeys(found)) for status, found in bad.items()}
    if bad["red"]:
        return f"red: {names['red']} {took}; mend this, then look again: harness doctor"
    if bad["yellow"]:
        return f"yellow: {names['yellow']} {took}; it will run. next: {command}"
    return f"green {took}. next: {command}"


def _names(report: Report) -> list[str]:
    return list(dict.fromkeys(check.name for check in report.all_checks()))


def _line(report: Report, name: str) -> tuple[Status, str, str]:
    """Status, name, and text of the check of this name where it is worst."""
    checks = [check for check in report.all_checks() if check.name == name]
    shown = max(checks, key=lambda check: SEVERITY[check.status])
    text = f"{shown.value}; -> {shown.do}" if shown.do else shown.value
    if report.other_nodes and shown.host:
        alike = sum(check.status == shown.status for check in checks) - 1
        others = f" (and {count(alike, 'node')} more {shown.status})" if alike else ""
        text = f"{shown.host}{others}: {text}"
    return shown.status, name, text


def _sum(reads: Sequence[Facts], name: str) -> float | None:
    values = [read[name] for read in reads if name in read]
    return sum(values) if values else None


def verdict_of(checks: Sequence[Check]) -> Status:
    """The worst status, where nothing checked is nothing bad."""
    found = worst(checks)
    return "green" if found == "not checked" else found
