"""Print the report of `harness data check`, and write it as JSON."""

import json
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from rich import box
from rich.table import Table

from harness.data.prepare.check import NOTES, WRONG, Report
from harness.system.console import count, out, wide
from harness.system.files import write_text

_EXAMPLES = 5


def show(report: Report) -> None:
    """Print a table of the splits, and the first findings of each kind."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("split", "of", "images", "classes", "per class", "GB", "median px"):
        table.add_column(name, justify="left" if name in ("split", "of") else "right")
    for split in report.splits:
        least, most = split.least_per_class, split.most_per_class
        table.add_row(
            split.split,
            split.kind,
            f"{split.images:,}",
            f"{split.classes:,}",
            f"{least:,}" if least == most else f"{least:,} to {most:,}",
            "" if split.gigabytes is None else f"{split.gigabytes:,.2f}",
            f"{split.median_width_px} x {split.median_height_px}",
        )
    wide.print(table)
    order = [*WRONG, *NOTES]
    findings = sorted(report.findings, key=lambda finding: order.index(finding.kind))
    for kind, group in groupby(findings, key=lambda finding: finding.kind):
        each = list(group)
        what = WRONG.get(kind) or NOTES[kind]
        out.print(f"{'WRONG' if kind in WRONG else 'note'}: {len(each):,} x {kind} ({what})")
        for finding in each[:_EXAMPLES]:
            out.print(f"    {finding.where}" + (f": {finding.detail}" if finding.detail else ""))
        if len(each) > _EXAMPLES:
            out.print(f"    and {len(each) - _EXAMPLES:,} more; --json FILE lists them")


def write_json(report: Report, path: Path) -> None:
    """Write the report as JSON."""
    findings = [asdict(finding) | {"wrong": finding.wrong} for finding in report.findings]
    write_text(path, json.dumps(asdict(report) | {"findings": findings}, indent=1))


def last_line(report: Report, path: Path) -> str:
    """Return the last line: the verdict and what to do next."""
    if report.wrong:
        return (
            f"{path}: {count(len(report.wrong), 'finding')} would make training wrong; fix them "
            "and check again"
        )
    looked = "headers are good; --decode looks at all of every image,"
    looked = "images are good;" if report.decoded else looked
    images = sum(split.images for split in report.splits)
    return f"{path}: {images:,} {looked} harness data pack makes shards of them"
