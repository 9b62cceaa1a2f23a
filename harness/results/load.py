"""Reading run folders back: state, rows, result; also of runs that failed or are still going."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from harness.errors import BadInput
from harness.record import rank_log
from harness.record.folder import read_state
from harness.record.schema import Result, Row

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Failure:
    """What ended a run, as the rank tells that failed first, and the end of that rank's log."""

    message: str
    rank: int | None = None
    host: str | None = None
    log: Path | None = None
    last_lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadedRun:
    """A run as its folder tells it; `result` is there once it has finished."""

    path: Path
    state: str
    rows: list[Row]
    result: Result | None
    failure: Failure | None


def load_run(path: Path) -> LoadedRun:
    """Read a run folder.

    Raises:
        BadInput: not a run folder, or a record of another version.
    """
    if not (path / "config.yaml").is_file():
        raise BadInput(f"{path}: is not a run folder; list them with: harness show runs")
    result = None
    if (path / "result.json").exists():
        result = _parse(Result, (path / "result.json").read_text(), path / "result.json")
    failure = None
    if (path / "failure.json").exists():
        failure = _failure(path)
    return LoadedRun(path, read_state(path), list(_rows(path / "rows.jsonl")), result, failure)


def find_runs(roots: list[Path]) -> list[LoadedRun]:
    """All runs in the given folders, by name.

    Raises:
        BadInput: no such folder, or no run in it.
    """
    found = []
    for root in roots:
        if not root.is_dir():
            raise BadInput(f"{root}: no such folder; runs lie in --run.root, by default runs/")
        found += [load_run(config.parent) for config in sorted(root.glob("*/config.yaml"))]
    if not found:
        raise BadInput(f"{', '.join(map(str, roots))}: holds no run; start one: launch/train.py")
    return found


def _rows(path: Path) -> Iterator[Row]:
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not line.endswith("\n"):
            return  # the last line is still being written
        yield _parse(Row, line, f"{path}: line {number}")


def _failure(path: Path) -> Failure:
    """What a failure says; the machine may have stopped while it was written."""
    file = path / "failure.json"
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        rank, message = int(told["rank"]), str(told["message"])
    except (ValueError, KeyError, TypeError):
        return Failure(f"{file}: cannot be read")
    log, lines = rank_log.path_of(path, rank), tuple(rank_log.last_lines(path, rank))
    return Failure(message, rank, told.get("host"), log if lines else None, lines)


def _parse(model: type[M], text: str, where: Path | str) -> M:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "JSON"
        raise BadInput(
            f"{where}: {field}: {first['msg'].lower()}; was it written by another version?"
        ) from None
