"""The run folder: the place of everything that a run leaves behind, over all its attempts."""

from __future__ import annotations

import json
import os
import socket
import time
import traceback
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.config import Config, differing, fingerprint, flat, load
from harness.errors import BadInput
from harness.run_folder.lease import Lease
from harness.system.files import write_atomic
from harness.system.process import process_age_s

State = Literal["running", "stopped", "finished", "failed"]
STACKS = "stacks"


@dataclass(frozen=True)
class RunFolder:
    """A claimed folder; `run_id` is the run's name in W&B too."""

    path: Path
    run_id: str
    attempt: int

    @property
    def rows(self) -> Path:
        """The Rows, one JSON object per line."""
        return self.path / "rows.jsonl"

    @property
    def checkpoints(self) -> Path:
        """What the run can go on from."""
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        """The weights after the last step."""
        return self.checkpoints / "final.pt"

    @property
    def stacks(self) -> Path:
        """Where each rank stood when this attempt was ended."""
        return self.path / STACKS

    def set_state(self, state: State) -> None:
        """Say how the run stands; launchers read this, since torchrun hides exit codes."""
        write_text(self.path / "state", state + "\n")

    def write_json(self, name: str, value: Any) -> None:
        """Write a record, whole or not at all."""
        write_text(self.path / name, json.dumps(value, indent=2) + "\n")


def is_finished(path: Path, config: Config, digests: Mapping[str, str | None]) -> bool:
    """Whether this very run has been done already; if not, it may begin or go on here.

    Args:
        digests: of the images, by their names in the Result: paths may differ, images may not.

    Raises:
        BadInput: the folder holds something else, or another run.
    """
    if not path.exists():
        return False
    if not path.is_dir():
        raise BadInput(f"{path}: is a file; choose another --run.name")
    if asks_restart(config) or _is_new(path):
        return False
    there = _config_of(path)
    instead = "choose another --run.name, or --run.restart to move it aside"
    if differences := differing(there, config, "result"):
        raise BadInput(f"{path}: holds a run with another {', '.join(differences[:3])}; {instead}")
    if changed := _changed(path, config, digests):
        raise BadInput(f"{path}: holds this run on other {changed}; {instead}")
    return read_state(path) == "finished"


def claim(path: Path, config: Config) -> tuple[RunFolder, Lease]:
    """Take the run folder for an attempt: a new one, or that of a run that has not finished.

    An old one is moved aside first where asked. What an earlier attempt left as its failure, and
    the stacks of its ranks, get that attempt's number.

    Raises:
        BadInput: it cannot be written, or another job works in it.
    """
    try:
        if asks_restart(config) and path.exists():
            Lease.take(path).release()  # not from under a job that works in it
            path.rename(path.with_name(f"{path.name}.{time.strftime('%Y%m%d-%H%M%S')}"))
        (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        lease = Lease.take(path)
        if not (path / "config.yaml").exists():
            # What restarts a run is said by the command, not by the record of it.
            plain = config.run.model_copy(update={"restart": False, "dry_run": False})
            write_text(path / "config.yaml", load.dump(config.model_copy(update={"run": plain})))
        if not (path / "run_id").exists():
            write_text(path / "run_id", uuid.uuid4().hex[:10] + "\n")
        number = len(attempts(path)) + 1
        if (path / "failure.json").exists():
            (path / "failure.json").replace(path / f"failure-{number - 1}.json")
        _set_stacks_aside(path, number - 1)
    except OSError as error:
        raise BadInput(
            f"{path}: {error.strerror}; set --run.root to a folder you can write"
        ) from None
    return RunFolder(path, (path / "run_id").read_text().strip(), number), lease


def begin_attempt(folder: RunFolder, lease: Lease, facts: dict[str, Any]) -> float:
    """Write down that an attempt begins, and how the one before ended.

    Args:
        facts: about this attempt, for attempts.jsonl.

    Returns:
        Seconds that all earlier attempts took together.
    """
    before = attempts(folder.path)
    line: dict[str, Any] = {"attempt": folder.attempt, "began_at": time.time() - process_age_s()}
    if before and lease.previous is not None:
        state = read_state(folder.path)
        line["previous_ended"] = "killed" if state == "running" else state
        # A heartbeat may be seconds old, and the last row younger.
        seen = max(lease.previous.last_seen, _modified_at(folder.rows))
        line["previous_s"] = max(0.0, seen - before[-1]["began_at"])
    # All lines anew: what a kill cut short would else take the next line with it.
    _write_attempts(folder.path, [*before, line | facts])
    folder.set_state("running")
    return float(sum(each.get("previous_s", 0.0) for each in (*before, line)))


def add_to_attempt(path: Path, facts: dict[str, Any]) -> None:
    """Write down what is known of the newest attempt only since it has begun.

    Raises:
        OSError: it cannot be written; the file is what it was.
    """
    *before, line = attempts(path)
    _write_attempts(path, [*before, line | facts])


def _write_attempts(path: Path, lines: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_text(path / "attempts.jsonl", text)


def attempts(path: Path) -> list[dict[str, Any]]:
    """What attempts.jsonl says of each attempt of a run, in their order."""
    try:
        lines = (path / "attempts.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        with suppress(ValueError):  # a line that a kill cut short
            found.append(json.loads(line))
    return found


def changed_since(path: Path, config: Config) -> dict[str, Any]:
    """Settings that are not those of the first attempt: none of them may change the result."""
    first, here = flat(_config_of(path)), flat(config)
    return {
        key: value
        for key, value in here.items()
        if first[key] != value and not key.startswith("run.")
    }


def asks_restart(config: Config) -> bool:
    """Whether to start over: what a launcher starts again by itself is to go on instead."""
    again = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return config.run.restart and not any(int(os.environ.get(name) or 0) for name in again)


def read_state(path: Path) -> str:
    """How the run in a folder stands; `unknown` if it does not say."""
    try:
        return (path / "state").read_text().strip()
    except OSError:
        return "unknown"


def record_failure(path: Path, rank: int, error: BaseException) -> bool:
    """Leave failure.json and the state in the run's folder; False if another rank was first."""
    report = {
        "rank": rank,
        "host": socket.gethostname(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kind": type(error).__name__,
        "message": str(error),
        "stack": "".join(traceback.format_exception(error)),
    }
    try:
        with (path / "failure.json").open("x") as file:
            file.write(json.dumps(report, indent=2) + "\n")
            write_text(path / "state", "failed\n")
    except FileExistsError:
        return False
    except OSError:
        pass  # where the folder cannot be written any more, the message on the console must do
    return True


def write_text(path: Path, text: str) -> None:
    """Write a small record, whole or not at all."""
    write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))


def _modified_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _is_new(path: Path) -> bool:
    """Whether no attempt has come as far as leaving anything of its own here."""
    ours = {"lease.json", "checkpoints"}
    entries = [entry for entry in path.iterdir() if entry.name not in ours]
    return all(entry.name.startswith(".") for entry in entries)


def _changed(path: Path, config: Config, digests: Mapping[str, str | None]) -> str | None:
    """What else than settings makes this another run than the one that began here."""
    before = attempts(path)
    if not before:
        return None
    first = before[0]
    if differ := [name for name, digest in digests.items() if first[name] != digest]:
        return f"images ({differ[0]} differs)"
    if first["result_fingerprint"] != fingerprint(config, "result"):
        return (
            "terms: the version of the harness that began it has other settings, or orders or "
            "crops images otherwise"
        )
    return None


def _config_of(path: Path) -> Config:
    file = path / "config.yaml"
    if not file.exists():
        raise BadInput(f"{path}: is not empty and holds no run; choose another --run.name")
    try:
        return Config.model_validate(load.read_yaml(file))
    except ValueError:
        raise BadInput(
            f"{file}: was written by another version of the harness; choose another --run.name, "
            "or --run.restart to move it aside"
        ) from None


def _set_stacks_aside(run_folder: Path, attempt: int) -> None:
    """Put the stacks that an attempt left beside its failure; a rank that was killed left none.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = run_folder / STACKS
    for file in folder.glob("*.txt"):
        if not file.stat().st_size:
            file.unlink()
    if not folder.is_dir():
        return
    if any(folder.iterdir()):
        folder.rename(run_folder / f"failure-{attempt}-{STACKS}")
    else:
        folder.rmdir()
