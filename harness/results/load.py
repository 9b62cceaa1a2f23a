"""Read run folders: state, rows, result and failure, also of unfinished and failed runs."""

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from harness.config import Config
from harness.errors import BadInput
from harness.logging import rank_log
from harness.logging.schema import Result, Row
from harness.run_folder.folder import read_state

M = TypeVar("M", bound=BaseModel)
Rows = TypeAdapter(list[Row])

SILENT = "silent"
"""State of a run that is `running` but has no heartbeat: it was killed, or its disk hangs."""
SILENT_S = 120.0  # a heartbeat comes every 5 s; this leaves room for clocks that differ


@dataclass(frozen=True)
class Failure:
    """The error of the rank that failed first, and the last lines of its log."""

    message: str
    rank: int | None = None
    host: str | None = None
    log: Path | None = None
    last_lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadedRun:
    """The content of a run folder; `result` is None until the run has finished."""

    path: Path
    state: str  # content of the file `state`; `silent` instead of `running` without a heartbeat
    rows: list[Row]
    result: Result | None
    failure: Failure | None
    active_at: float | None  # its end or last heartbeat, in Unix seconds; None if unknown


def load_run(path: Path) -> LoadedRun:
    """Read a run folder; raise BadInput if it is none, is of another version, or cannot be read."""
    if not _is_run(path):
        raise BadInput(f"{path}: is not a run folder; list them with: harness show runs")
    file = path / "result.json"
    try:
        result = _parse(Result, file.read_bytes(), file) if file.exists() else None
        failure = _failure(path) if (path / "failure.json").exists() else None
        state, rows = read_state(path), _rows(path / "rows.jsonl")
    except OSError as error:
        raise BadInput(f"{error.filename or path}: {error.strerror}; make it readable") from None
    active_at = _active_at(path, result)
    if state == "running" and active_at is not None and time.time() - active_at > SILENT_S:
        state = SILENT
    return LoadedRun(path, state, rows, result, failure, active_at)


def run_folders(roots: Iterable[Path]) -> list[Path]:
    """Return the run folders in folders, sorted by name, and given ones; raise BadInput if none."""
    given, folders = list(roots), dict[Path, Path]()
    for root in given:
        for path in filter(_is_run, [root] if _is_run(root) else sorted(root.glob("*"))):
            folders.setdefault(path.resolve(), path)  # a run that is named twice is one run
    if not folders:
        raise BadInput(f"{', '.join(map(str, given))}: holds no run; start one: launch/train.py")
    return list(folders.values())


def last_config(config: Config, attempts: Sequence[Mapping[str, Any]]) -> Config:
    """Return the config of a run's last attempt: that of the first with all later changes."""
    if not attempts:
        return config
    sections = config.model_dump(mode="json")
    for key, value in attempts[-1].get("changed", {}).items():
        section, _, name = key.partition(".")
        sections[section][name] = value
    return Config.model_validate(sections)


def environment(path: Path) -> Mapping[str, Any]:
    """Return the content of environment.json; empty if the file is missing or damaged."""
    with suppress(OSError, ValueError):
        if isinstance(content := json.loads((path / "environment.json").read_bytes()), dict):
            return content
    return {}


def _is_run(path: Path) -> bool:
    return os.path.isfile(path / "config.yaml")  # False also where permission is denied


def _active_at(path: Path, result: Result | None) -> float | None:
    if result is not None:
        with suppress(ValueError):
            return datetime.fromisoformat(result.finished_at).timestamp()
    times_s = []
    for name in ("lease.json", "rows.jsonl", "state"):
        # Open the file first: on a network disk, stat alone may return an old time.
        with suppress(OSError), (path / name).open("rb") as file:
            times_s.append(os.fstat(file.fileno()).st_mtime)
    return max(times_s, default=None)


def _rows(path: Path) -> list[Row]:
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")  # a line without a newline is still being written
    # All lines at once is faster. On an error, parse them one by one to name the line; also if the
    # number differs, as two broken lines can form one valid object.
    with suppress(ValidationError):
        rows = Rows.validate_json(b"[" + b",".join(lines) + b"]")
        if len(rows) == len(lines):
            return rows
    return [_parse(Row, line, f"{path}: line {n}") for n, line in enumerate(lines, start=1)]


def _failure(path: Path) -> Failure:
    """Return the content of failure.json, which may be damaged if the machine stopped."""
    file = path / "failure.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        rank, message = int(content["rank"]), str(content["message"])
    except (ValueError, KeyError, TypeError):
        return Failure(f"{file}: cannot be read")
    log, lines = rank_log.path_of(path, rank), []
    with suppress(OSError):  # rank 0 has none
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
    return Failure(message, rank, content.get("host"), log if lines else None, tuple(lines))


def _parse(model: type[M], text: bytes, where: Path | str) -> M:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc'])) or 'JSON'}: {first['msg'].lower()}"
        raise BadInput(f"{where}: {what}; was it written by another version?") from None
