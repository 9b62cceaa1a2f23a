"""Read the arguments of `harness compare` as the sides of a comparison, and compare them."""

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from harness.config.load import nearest
from harness.errors import BadInput
from harness.results.measured import Measured, facts, identity
from harness.results.references import Reference
from harness.results.source import REF, reference, runs_at
from harness.results.stats.compare import Cell, Comparison, compare_cells
from harness.results.stats.metrics import Metric
from harness.results.stats.reproduce import reproduce
from harness.system.console import count

VS = "vs"


def read_sides(addresses: Sequence[str], *, report: bool) -> tuple[list[Cell], list[Reference]]:
    """Read the runs at the addresses, as cells of which the last is the base; published results.

    `A... vs B...` says which runs make up which side. Without `vs`, two addresses are two sides;
    more than two are grouped by config (the seed aside), software and hardware. For a report, one
    side is enough.

    Raises:
        BadInput: an address cannot be read, no runs are named, or there is no second side.
    """
    groups = [list(part) for is_vs, part in groupby(addresses, VS.__eq__) if not is_vs]
    if len(groups) != addresses.count(VS) + 1:
        raise BadInput("compare: `vs` stands between two sides: harness compare A vs B")
    references = [row for address in addresses if (row := reference(address))]
    named = [[address for address in group if not address.startswith(REF)] for group in groups]
    if not (named := [group for group in named if group]):
        raise BadInput("compare: name at least one run folder; list them with: harness show runs")
    if len(named) > 1 or VS in addresses:
        cells = [_cell(group, runs_at(*group)) for group in named]
    elif len(named[0]) == 1 or (len(named[0]) == 2 and not references):
        cells = [_cell([address], runs_at(address)) for address in named[0]]
    else:
        kinds: dict[str, list[Measured]] = {}
        for run in runs_at(*named[0]):
            kinds.setdefault(identity(run), []).append(run)
        cells = [_cell([run.address for run in kind], kind) for kind in kinds.values()]
    if len(cells) == 1 and not references and not report:
        raise BadInput(
            f"compare: {cells[0].label} has nothing to be compared with; name a second address or "
            "ref:ID, or give --html FILE for its report"
            if len(named[0]) == 1
            else f"compare: these {count(len(cells[0].runs), 'run')} are all of one kind; say "
            "which to compare with which: harness compare A... vs B..."
        )
    return cells, references


def compare_sides(
    cells: Sequence[Cell], references: Sequence[Reference], known: Mapping[str, Metric],
    primary: str, margins: Mapping[str, float],
) -> list[Comparison]:  # fmt: skip
    """Compare each cell with the last one by the known metrics, then all with each reference.

    The margins, by metric, are those of published results.

    Raises:
        BadInput: two cells have no metric in common, or runs lack a published metric.
    """
    *new, base = cells
    comparisons = [compare_cells(cell, base, known, primary) for cell in new]
    for comparison in comparisons:
        if not comparison.findings:
            raise BadInput(
                f"{comparison.new.label}, {base.label}: have no metric in common; compare runs "
                "that trained, or that validated on images"
            )
    return comparisons + [
        reproduce(cell, row, margins.get(row.metric)) for row in references for cell in cells
    ]


def check_testing(keys: Iterable[str], cells: Iterable[Cell]) -> None:
    """Raise BadInput if a key of --testing is no setting or fact of the runs; name the nearest."""
    groups = [part for cell in cells for run in cell.runs for part in facts(run).values()]
    known = list(dict.fromkeys(key for part in groups for key in part))
    for key in keys:
        if key not in known:
            raise BadInput(f"--testing {key}: no such setting or fact{nearest(key, known)}")


def _cell(addresses: Sequence[str], runs: Sequence[Measured]) -> Cell:
    if len(runs) == 1:
        label = runs[0].name
    elif len(addresses) == 1:
        label = os.path.basename(addresses[0].rstrip("/")) or addresses[0]
    else:
        prefix = os.path.commonprefix([run.name for run in runs])  # noqa: RUF071 - of letters
        label = f"{prefix}*" if prefix else f"{runs[0].name} and {len(runs) - 1} more"
    return Cell(label, tuple(runs))
