"""Read the arguments of `harness compare` as the sides of a comparison."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from harness.config.load import nearest
from harness.errors import BadInput
from harness.results.measured import Measured, facts, identity
from harness.results.references import Reference
from harness.results.source import reference, runs_at, runs_at_all
from harness.results.stats.compare import Cell
from harness.system.console import count

VS = "vs"


@dataclass(frozen=True)
class Sides:
    """The sides of a comparison: cells of runs, the last of them the base; published results."""

    cells: tuple[Cell, ...]
    references: tuple[Reference, ...]


def read_sides(addresses: Sequence[str], *, report: bool = False) -> Sides:
    """Read the runs and published results at the addresses, and divide the runs into sides.

    `A... vs B...` says which runs make up which side. Without `vs`, two addresses are two sides;
    more than two are grouped by config (the seed aside), software and hardware.

    Args:
        report: whether one side is enough, as its report is wanted.

    Raises:
        BadInput: an address cannot be read, no runs are named, or there is no second side.
    """
    groups = _split(addresses)
    references = [row for group in groups for address in group if (row := reference(address))]
    named = [[address for address in group if not reference(address)] for group in groups]
    named = [group for group in named if group]
    if not named:
        raise BadInput("compare: name at least one run folder; list them with: harness show runs")
    if len(named) == 1 and VS not in addresses:
        cells = _group(named[0], against_published=bool(references), report=report)
    else:
        cells = [Cell(_label(group, runs := runs_at_all(group)), tuple(runs)) for group in named]
    if len(cells) == 1 and not references and not report:
        raise BadInput(
            f"compare: {cells[0].label} has nothing to be compared with; name a second address or "
            "ref:ID, or give --html FILE for its report"
        )
    return Sides(tuple(cells), tuple(references))


def check_testing(keys: Iterable[str], cells: Iterable[Cell]) -> None:
    """Check that each key of --testing is a setting or fact of the runs.

    Raises:
        BadInput: a key is unknown; names the nearest.
    """
    runs = (run for cell in cells for run in cell.runs)
    groups = (values for run in runs for values in facts(run).values())
    known = list(dict.fromkeys(key for values in groups for key in values))
    for key in keys:
        if key not in known:
            raise BadInput(f"--testing {key}: no such setting or fact{nearest(key, known)}")


def _split(addresses: Sequence[str]) -> list[list[str]]:
    """Split the addresses at each `vs`."""
    groups: list[list[str]] = [[]]
    for address in addresses:
        if address == VS:
            groups.append([])
        else:
            groups[-1].append(address)
    if VS in addresses and not all(groups):
        raise BadInput("compare: `vs` stands between two sides: harness compare A vs B")
    return groups


def _group(addresses: Sequence[str], *, against_published: bool, report: bool) -> list[Cell]:
    """Return the cells of addresses that no `vs` divides."""
    runs_of = {address: runs_at(address) for address in addresses}
    if len(addresses) <= 2 and not (against_published and len(addresses) == 2):
        return [Cell(_label([a], runs_of[a]), tuple(runs_of[a])) for a in addresses]
    runs = {run.address: run for part in runs_of.values() for run in part}.values()
    kinds: dict[str, list[Measured]] = {}
    for run in runs:
        kinds.setdefault(identity(run), []).append(run)
    if len(kinds) == 1 and not against_published and not report:
        raise BadInput(
            f"compare: these {count(len(runs), 'run')} are all of one kind; say which to compare "
            "with which: harness compare A... vs B..."
        )
    return [
        Cell(_label([run.address for run in kind], kind), tuple(kind)) for kind in kinds.values()
    ]


def _label(addresses: Sequence[str], runs: Sequence[Measured]) -> str:
    """Return the address if there is only one, else the common prefix of the runs' names."""
    if len(runs) == 1:
        return runs[0].name
    if len(addresses) == 1:
        return os.path.basename(addresses[0].rstrip("/")) or addresses[0]
    letters = zip(*(run.name for run in runs), strict=False)
    prefix = "".join(column[0] for column in takewhile(lambda c: len({*c}) == 1, letters))
    return f"{prefix}*" if prefix else f"{runs[0].name} and {len(runs) - 1} more"
