"""The run folder: claimed once, then the place of everything that a run leaves behind."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness import cli
from harness.config import Config, differing
from harness.errors import BadInput

State = Literal["running", "stopped", "finished", "failed"]


@dataclass(frozen=True)
class RunFolder:
    """A claimed folder; `run_id` is the run's name in W&B too."""

    path: Path
    run_id: str

    @property
    def rows(self) -> Path:
        """The Rows, one JSON object per line."""
        return self.path / "rows.jsonl"

    @property
    def weights(self) -> Path:
        """The weights after the last step."""
        return self.path / "checkpoints" / "final.pt"

    def set_state(self, state: State) -> None:
        """Say how the run stands; launchers read this, since torchrun hides exit codes."""
        write_atomic(self.path / "state", state + "\n")

    def write_json(self, name: str, value: Any) -> None:
        """Write a record, whole or not at all."""
        write_atomic(self.path / name, json.dumps(value, indent=2) + "\n")


def is_finished(path: Path, config: Config, digests: dict[str, str | None]) -> bool:
    """Whether this very run has been done already.

    Args:
        digests: of the images, by their names in the Result: paths may differ, images may not.

    Raises:
        BadInput: the folder holds another run, or one that did not finish.
    """
    if config.run.restart or not path.exists():
        return False
    if not path.is_dir():
        raise BadInput(f"{path}: is a file; choose another --run.name")
    if not any(path.iterdir()):
        return False
    there = _config_of(path)
    if differences := differing(there, config, "result"):
        raise BadInput(
            f"{path}: holds a run with another {', '.join(differences[:3])}; choose another "
            "--run.name, or --run.restart to move it aside"
        )
    if read_state(path) != "finished":
        raise BadInput(
            f"{path}: holds this run, {read_state(path)}; start over with --run.restart "
            "(the old folder is moved aside)"
        )
    result = json.loads((path / "result.json").read_text())
    if changed := [name for name, digest in digests.items() if result[name] != digest]:
        raise BadInput(
            f"{path}: holds this run on other images ({changed[0]} differs); choose another "
            "--run.name, or --run.restart to move it aside"
        )
    return True


def claim(path: Path, config: Config) -> RunFolder:
    """Make the run folder with its config.yaml; an old one is moved aside where asked.

    Raises:
        BadInput: it cannot be written.
    """
    try:
        if config.run.restart and path.exists():
            path.rename(path.with_name(f"{path.name}.{time.strftime('%Y%m%d-%H%M%S')}"))
        (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        folder = RunFolder(path, uuid.uuid4().hex[:10])
        # What restarts a run is said by the command, not by the record of it.
        plain = config.run.model_copy(update={"restart": False, "dry_run": False})
        write_atomic(path / "config.yaml", cli.dump(config.model_copy(update={"run": plain})))
        write_atomic(path / "run_id", folder.run_id + "\n")
        folder.set_state("running")
    except OSError as error:
        raise BadInput(
            f"{path}: {error.strerror}; set --run.root to a folder you can write"
        ) from None
    return folder


def read_state(path: Path) -> str:
    """How the run in a folder stands; `unknown` if it does not say."""
    try:
        return (path / "state").read_text().strip()
    except OSError:
        return "unknown"


def record_failure(path: Path, rank: int, error: BaseException) -> None:
    """Leave failure.json and the state in this run's own folder, unless another rank was first."""
    interrupted = isinstance(error, KeyboardInterrupt)
    report = {
        "rank": rank,
        "host": socket.gethostname(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kind": type(error).__name__,
        "message": "interrupted" if interrupted else str(error),
    }
    # Where the folder cannot be written any more, the message on the console must do.
    with suppress(OSError), (path / "failure.json").open("x") as file:
        file.write(json.dumps(report, indent=2) + "\n")
        write_atomic(path / "state", "stopped\n" if interrupted else "failed\n")


def write_atomic(path: Path, text: str) -> None:
    """Write a file whole or not at all, also if the machine stops in between."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _config_of(path: Path) -> Config:
    file = path / "config.yaml"
    if not file.exists():
        raise BadInput(f"{path}: is not empty and holds no run; choose another --run.name")
    try:
        return Config.model_validate(cli.read_yaml(file))
    except ValueError:
        raise BadInput(
            f"{file}: was written by another version of the harness; choose another --run.name, "
            "or --run.restart to move it aside"
        ) from None
