"""Runs as two tables for a spreadsheet or a notebook: a line per run, and a line per row."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.logging.schema import RESULT_PREFIX, Row
from harness.logging.wandb_run import result_for_wandb
from harness.results.load import load_run
from harness.results.measured import Column, Measured, facts
from harness.results.publish.publish import check_names
from harness.system.files import new_folder

GROUPS = ("setting", "software", "hardware")
"""Of the facts that may make a difference; those about the data are fields of the result."""

WHOLE = ("attempt", "step", "images_seen")
"""Fields of a Row that are whole numbers, which the columns that are compared hold as others."""


def to_csv(runs: Sequence[Measured], out: Path) -> None:
    """Write runs.csv and rows.csv into a new folder.

    runs.csv has the name, address and seed of each run, its result's scalar fields, and as
    `setting:...`, `software:...` and `hardware:...` what is not the same in all of them.
    rows.csv has all rows, each with its run's name; of a run in W&B, the columns that are compared.

    Raises:
        BadInput: the folder exists, or cannot be written; two runs have one name.
    """
    check_names(run.name for run in runs)
    with new_folder(out) as folder:
        _write(folder / "runs.csv", _lines(runs))
        _write(folder / "rows.csv", [row for run in runs for row in _rows(run)])


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table; its columns are all that any row has, in the order in which they first come."""
    columns = dict.fromkeys(key for row in rows for key in row)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def _lines(runs: Sequence[Measured]) -> list[dict[str, Any]]:
    """A line per run: who it is, its result, what sets it apart from another one."""
    about = [
        {f"{group}:{key}": value for group in GROUPS for key, value in facts(run)[group].items()}
        for run in runs
    ]
    keys = dict.fromkeys(key for told in about for key in told)
    differ = [key for key in keys if len({repr(told.get(key)) for told in about}) > 1]
    return [
        {"name": run.name, "address": run.address, "seed": run.config.run.seed}
        | _scalars(run)
        | {key: told.get(key) for key in differ}
        for run, told in zip(runs, about, strict=True)
    ]


def _scalars(run: Measured) -> dict[str, Any]:
    result = result_for_wandb(run.result)
    fields = {key.removeprefix(RESULT_PREFIX): value for key, value in result.items()}
    return {key: value for key, value in fields.items() if key not in ("name", "schema_version")}


def _rows(run: Measured) -> Iterator[dict[str, Any]]:
    """All rows of a run, as its folder tells them, or from the columns that are compared."""
    folder = Path(run.address)
    if (folder / "rows.jsonl").is_file():
        for row in load_run(folder).rows:
            told = row.model_dump(exclude={"schema_version"})
            yield {"run": run.name} | told | {"events": "; ".join(row.events or [])}
        return
    train, val = _of_kind("train", run.train), _of_kind("val", run.val)
    # A validation comes after the row that ends its epoch.
    for line in sorted([*train, *val], key=lambda line: (line["step"], line["kind"])):
        yield {"run": run.name} | {name: line[name] for name in Row.model_fields if name in line}


def _of_kind(kind: str, columns: Mapping[str, Column]) -> Iterator[dict[str, Any]]:
    for values in zip(*(column.tolist() for column in columns.values()), strict=True):
        told = {name: value for name, value in zip(columns, values, strict=True) if value == value}
        yield {"kind": kind} | {k: int(v) if k in WHOLE else v for k, v in told.items()}
