"""The run folder: holds all files of a run, over all its attempts."""

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

from pydantic import ValidationError

from harness.config import Config, differing, fingerprint, flat, load, recorded
from harness.errors import BadInput
from harness.run_folder.lease import Lease
from harness.system.files import write_text
from harness.system.process import process_age_s


@dataclass(frozen=True)
class RunFolder:
    """A claimed run folder; `run_id` is also the run's id in W&B."""

    path: Path
    run_id: str
    attempt: int

    @property
    def rows(self) -> Path:
        """The file of the rows, one JSON object per line."""
        return self.path / "rows.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        """The file of the weights after the last step."""
        return self.checkpoints / "final.pt"

    @property
    def stacks(self) -> Path:
        """The folder of the stack traces that ranks leave when they hang or are terminated."""
        return self.path / "stacks"

    def set_state(self, state: Literal["running", "stopped", "finished", "failed"]) -> None:
        """Write the run's state; launchers read it, since torchrun hides exit codes."""
        write_text(self.path / "state", state + "\n")

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file atomically."""
        write_text(self.path / name, json.dumps(value, indent=2) + "\n")


def is_finished(path: Path, config: Config, digests: Mapping[str, str | None]) -> bool:
    """Return whether this run has finished already; if not, it may start or resume here.

    The digests are of the images, by their names in the Result: paths may differ between attempts,
    images may not.

    Raises:
        BadInput: the folder holds something else, or another run.
    """
    if path.exists() and not path.is_dir():
        raise BadInput(f"{path}: is a file; choose another --run.name")
    if not path.exists() or asks_restart(config) or _is_new(path):
        return False
    if not (path / "config.yaml").exists():
        raise BadInput(f"{path}: is not empty and holds no run; choose another --run.name")
    instead = "choose another --run.name, or --run.restart to move it aside"
    before = config_of(path, f" of the harness; {instead}")
    if differences := differing(before, config, "result"):
        raise BadInput(f"{path}: holds a run with another {', '.join(differences[:3])}; {instead}")
    if changed := _changed(path, config, digests):
        raise BadInput(f"{path}: holds this run on other {changed}; {instead}")
    return read_state(path) == "finished"


def claim(path: Path, config: Config) -> tuple[RunFolder, Lease]:
    """Claim the run folder for an attempt: a new one, or that of an unfinished run.

    With `run.restart` an existing folder is moved aside first. The failure and stacks that an
    earlier attempt left are renamed to include that attempt's number.

    Raises:
        BadInput: the folder cannot be written, or another job works in it.
    """
    try:
        if asks_restart(config) and path.exists():
            Lease.take(path).release()  # refuses if a job works in it
            path.rename(path.with_name(f"{path.name}.{time.strftime('%Y%m%d-%H%M%S')}"))
        (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        lease = Lease.take(path)
        if not (path / "config.yaml").exists():
            write_text(path / "config.yaml", load.dump(recorded(config)))
        if not (path / "run_id").exists():
            write_text(path / "run_id", uuid.uuid4().hex[:10] + "\n")
        number = len(attempts(path)) + 1
        if (path / "failure.json").exists():
            (path / "failure.json").replace(path / f"failure-{number - 1}.json")
        _rename_stacks(path, number - 1)
    except OSError as error:
        # What mkdir says of a link: as to a scratch disk that was purged.
        dangles = isinstance(error, FileExistsError) and not path.parent.exists()
        why = f"{path.parent} is a link to nothing" if dangles else error.strerror
        raise BadInput(f"{path}: {why}; set --run.root to a folder you can write") from None
    return RunFolder(path, (path / "run_id").read_text().strip(), number), lease


def begin_attempt(folder: RunFolder, lease: Lease, facts: dict[str, Any]) -> float:
    """Record that an attempt begins, with these facts, and how the previous one ended.

    Returns the seconds that all earlier attempts took together.
    """
    before = attempts(folder.path)
    line: dict[str, Any] = {"attempt": folder.attempt, "began_at": time.time() - process_age_s()}
    if before and (last_seen := lease.last_seen) is not None:
        state = read_state(folder.path)
        line["previous_ended"] = "killed" if state == "running" else state
        with suppress(OSError):  # the last row may be newer than the last heartbeat
            last_seen = max(last_seen, folder.rows.stat().st_mtime)
        line["previous_s"] = max(0.0, last_seen - before[-1]["began_at"])
    # Rewrite all lines: one appended to a line that a kill cut short would be lost with it.
    _write_attempts(folder.path, [*before, line | facts])
    folder.set_state("running")
    return float(sum(attempt.get("previous_s", 0.0) for attempt in (*before, line)))


def add_to_attempt(path: Path, facts: dict[str, Any]) -> None:
    """Add fields to the record of the newest attempt.

    Raises:
        OSError: it cannot be written; the file is unchanged.
    """
    *before, line = attempts(path)
    _write_attempts(path, [*before, line | facts])


def _write_attempts(path: Path, lines: list[dict[str, Any]]) -> None:
    write_text(path / "attempts.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def attempts(path: Path) -> list[dict[str, Any]]:
    """Return the records of a run's attempts, oldest first, from attempts.jsonl."""
    try:
        lines = (path / "attempts.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        with suppress(ValueError):  # a line that a kill cut short
            records.append(json.loads(line))
    return records


def config_of(path: Path, what_then: str = "") -> Config:
    """Return the config of a run's first attempt; `what_then` ends the message on another version.

    Raises:
        BadInput: the config is of another version, or cannot be read.
    """
    try:
        return Config.model_validate(load.read_yaml(path / "config.yaml"))
    except ValidationError as error:
        where = f"{path}/config.yaml: {'.'.join(map(str, error.errors()[0]['loc']))}"
        raise BadInput(f"{where}: was written by another version{what_then}") from None


def changed_since(path: Path, config: Config) -> dict[str, Any]:
    """Return the settings that differ from the first attempt's; none of them affects the result."""
    first = flat(config_of(path))
    changed = {key: value for key, value in flat(config).items() if first[key] != value}
    return {key: value for key, value in changed.items() if not key.startswith("run.")}


def asks_restart(config: Config) -> bool:
    """Return whether to start over; after a launcher's own restart, the run resumes instead."""
    restarts = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return config.run.restart and not any(int(os.environ.get(name) or 0) for name in restarts)


def read_state(path: Path) -> str:
    """Return the state of the run in a folder; `unknown` if it cannot be read."""
    try:
        return (path / "state").read_text().strip()
    except (OSError, UnicodeDecodeError):  # missing, or damaged from outside
        return "unknown"


def record_failure(path: Path, rank: int, error: BaseException) -> bool:
    """Write failure.json and the state; return False if another rank has already done so."""
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
        pass  # the folder can no longer be written: the error is still printed on the console
    return True


def _is_new(path: Path) -> bool:
    """Return whether no attempt has written anything but its lease and empty folders."""
    return all(name[0] == "." or name in ("lease.json", "checkpoints") for name in os.listdir(path))


def _changed(path: Path, config: Config, digests: Mapping[str, str | None]) -> str | None:
    """Return what makes this another run than the folder's, settings aside; None if nothing."""
    first = next(iter(attempts(path)), None)
    if first is None:
        return None
    if differ := [name for name, digest in digests.items() if first[name] != digest]:
        return f"images ({differ[0]} differs)"
    if first["result_fingerprint"] != fingerprint(config, "result"):
        return (
            "terms: the version of the harness that began it has other settings, or orders or "
            "crops images otherwise"
        )
    return None


def _rename_stacks(run_folder: Path, attempt: int) -> None:
    """Rename the folder of stacks after the attempt that left it; remove empty files."""
    folder = run_folder / "stacks"
    if not folder.is_dir():
        return
    for file in [each for each in folder.glob("*.txt") if not each.stat().st_size]:
        file.unlink()
    try:
        folder.rmdir()
    except OSError:  # it is not empty
        folder.rename(run_folder / f"failure-{attempt}-stacks")
