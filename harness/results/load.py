"""Reading run folders back: state, rows, result; also of runs that failed or are still going."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from harness.config import Config, load
from harness.errors import BadInput
from harness.logging import rank_log
from harness.logging.schema import Result, Row
from harness.run_folder.folder import read_state

M = TypeVar("M", bound=BaseModel)
Rows = TypeAdapter(list[Row])

SILENT = "silent"
"""State of a run that says it is running and gives no sign of life: killed, or its disk hangs."""
SILENT_S = 120.0  # its heartbeat comes every 5 s; this leaves room for clocks that differ


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
    """A run as its folder tells it; `result` is there once it has finished.

    Attributes:
        state: as the run has put it down; or `silent`, if it is not running any more as it says.
        active_at: of its end, or of its last sign of life, in unix seconds; None if unknown.
    """

    path: Path
    state: str
    rows: list[Row]
    result: Result | None
    failure: Failure | None
    active_at: float | None


def load_run(path: Path) -> LoadedRun:
    """Read a run folder.

    Raises:
        BadInput: not a run folder, a record of another version, or one that cannot be read.
    """
    if not _is_run(path):
        raise BadInput(f"{path}: is not a run folder; list them with: harness show runs")
    try:
        return _load(path)
    except OSError as error:
        raise BadInput(f"{error.filename or path}: {error.strerror}; make it readable") from None


def run_folders(roots: Iterable[Path]) -> list[Path]:
    """Run folders in the given folders, by name; a run folder may be given itself.

    Raises:
        BadInput: there is none.
    """
    given = list(roots)
    found: dict[Path, Path] = {}
    for root in given:
        own = root / "config.yaml"
        configs = [own] if _is_run(root) else sorted(root.glob("*/config.yaml"))
        for config in configs:  # a run that is named twice is one run
            found.setdefault(config.parent.resolve(), config.parent)
    if not found:
        raise BadInput(f"{', '.join(map(str, given))}: holds no run; start one: launch/train.py")
    return list(found.values())


def find_runs(roots: Iterable[Path]) -> Iterator[LoadedRun | BadInput]:
    """All runs in the given folders, one at a time; of one that cannot be read, what is wrong.

    Raises:
        BadInput: there is none.
    """
    for path in run_folders(roots):
        try:
            yield load_run(path)
        except BadInput as error:
            yield error


def config_of(path: Path) -> Config:
    """What was asked of a run.

    Raises:
        BadInput: its config is of another version, or cannot be read.
    """
    try:
        return Config.model_validate(load.read_yaml(path / "config.yaml"))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise BadInput(f"{path}/config.yaml: {where}: was written by another version") from None


def config_at_the_end(config: Config, attempts: Sequence[Mapping[str, Any]]) -> Config:
    """The config of a run's last attempt, from config.yaml, which is that of its first."""
    changed = attempts[-1].get("changed") if attempts else None
    if not changed:
        return config
    sections = config.model_dump(mode="json")
    for key, value in changed.items():
        section, _, name = key.partition(".")
        sections[section][name] = value
    return Config.model_validate(sections)


def environment(path: Path) -> Mapping[str, Any]:
    """What a run ran on; empty where that was not written or is torn."""
    try:
        told = json.loads((path / "environment.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _is_run(path: Path) -> bool:
    return os.path.isfile(path / "config.yaml")  # no, also where a folder may not be looked into


def _load(path: Path) -> LoadedRun:
    result = None
    if (path / "result.json").exists():
        result = _parse(Result, (path / "result.json").read_bytes(), path / "result.json")
    failure = _failure(path) if (path / "failure.json").exists() else None
    try:
        state = read_state(path)
    except UnicodeDecodeError:  # damaged from outside
        state = "unknown"
    active_at = _active_at(path, result)
    if state == "running" and active_at is not None and time.time() - active_at > SILENT_S:
        state = SILENT
    return LoadedRun(path, state, _rows(path / "rows.jsonl"), result, failure, active_at)


def _active_at(path: Path, result: Result | None) -> float | None:
    """When the run ended, which copying leaves alone; else when it last wrote or beat."""
    if result is not None:
        with suppress(ValueError):
            return datetime.fromisoformat(result.finished_at).timestamp()
    times_s = []
    for name in ("lease.json", "rows.jsonl", "state"):
        # Opened, as a network disk's answer to a mere stat may be old.
        with suppress(OSError), (path / name).open("rb") as file:
            times_s.append(os.fstat(file.fileno()).st_mtime)
    return max(times_s, default=None)


def _rows(path: Path) -> list[Row]:
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")  # what no newline ends is still being written
    # All at once is faster; one by one names the line, also where two make up one JSON object.
    with suppress(ValidationError):
        rows = Rows.validate_json(b"[" + b",".join(lines) + b"]")
        if len(rows) == len(lines):
            return rows
    return [_parse(Row, line, f"{path}: line {at}") for at, line in enumerate(lines, start=1)]


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


def _parse(model: type[M], text: bytes, where: Path | str) -> M:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "JSON"
        raise BadInput(
            f"{where}: {field}: {first['msg'].lower()}; was it written by another version?"
        ) from None
