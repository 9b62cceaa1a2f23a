"""From the words of a command to the sides of a comparison."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
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
class Arms:
    """The sides: cells of runs, the last of which is the base, and published results."""

    cells: tuple[Cell, ...]
    references: tuple[Reference, ...]


def arms(words: Sequence[str], *, report: bool = False) -> Arms:
    """Read all that the words name.

    `A... vs B...` says which runs make up which side. Without `vs`, two addresses are two sides,
    and of more, those of one kind are: config (but for the seed), software and hardware agree.

    Args:
        report: whether one side will do, as what is wanted is its report.

    Raises:
        BadInput: an address cannot be read, no runs are named, or there is no second side.
    """
    groups = _split(words)
    references = [found for group in groups for word in group if (found := reference(word))]
    named = [[word for word in group if not reference(word)] for group in groups]
    named = [group for group in named if group]
    if not named:
        raise BadInput("compare: name at least one run folder; list them with: harness show runs")
    if len(named) == 1 and VS not in words:
        cells = _ungrouped(named[0], beside=bool(references), report=report)
    else:
        cells = [Cell(_label(group, runs := runs_at_all(group)), tuple(runs)) for group in named]
    if len(cells) == 1 and not references and not report:
        raise BadInput(
            f"compare: {cells[0].label} has nothing beside it; name a second address or ref:ID, "
            "or give --html FILE for its report"
        )
    return Arms(tuple(cells), tuple(references))


def check_testing(keys: Iterable[str], cells: Iterable[Cell]) -> None:
    """Refuse what is said to be under test where no run has such a fact.

    Raises:
        BadInput: a key is none of these; names the nearest.
    """
    runs = (run for cell in cells for run in cell.runs)
    known = list(dict.fromkeys(key for run in runs for part in facts(run).values() for key in part))
    for key in keys:
        if key not in known:
            raise BadInput(f"--testing {key}: nothing is called so{nearest(key, known)}")


def _split(words: Sequence[str]) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    for word in words:
        if word == VS:
            groups.append([])
        else:
            groups[-1].append(word)
    if VS in words and not all(groups):
        raise BadInput("compare: `vs` stands between two sides: harness compare A vs B")
    return groups


def _ungrouped(words: Sequence[str], *, beside: bool, report: bool) -> list[Cell]:
    """The cells of addresses that no `vs` divides."""
    found = [runs_at(word) for word in words]
    if len(words) <= 2 and not (beside and len(words) == 2):
        return [Cell(_label([w], runs), tuple(runs)) for w, runs in zip(words, found, strict=True)]
    runs = {run.address: run for part in found for run in part}.values()
    kinds: dict[str, list[Measured]] = {}
    for run in runs:
        kinds.setdefault(identity(run), []).append(run)
    if len(kinds) == 1 and not beside and not report:
        raise BadInput(
            f"compare: these {count(len(runs), 'run')} are all of one kind; say which to hold "
            "against which: harness compare A... vs B..."
        )
    return [
        Cell(_label([run.address for run in kind], kind), tuple(kind)) for kind in kinds.values()
    ]


def _label(words: Sequence[str], runs: Sequence[Measured]) -> str:
    """The address, if there is one, else what the runs' names begin with."""
    if len(runs) == 1:
        return runs[0].name
    if len(words) == 1:
        return os.path.basename(words[0].rstrip("/")) or words[0]
    common = "".join(_same(zip(*(run.name for run in runs), strict=False)))
    return f"{common}*" if common else f"{runs[0].name} and {len(runs) - 1} more"


def _same(columns: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """The letters of columns, as long as a column's letters are all the same."""
    return (letters[0] for letters in takewhile(lambda column: len({*column}) == 1, columns))
