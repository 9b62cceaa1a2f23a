"""A run out of the folder that W&B's client writes offline, read by the client's own command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.errors import BadInput
from harness.results.measured import Measured
from harness.results.wandb import rows

READ = (sys.executable, "-m", "wandb", "leet", "inspect", "--json")
TIMEOUT_S = 60


def read(folder: Path) -> Measured:
    """The run in such a folder.

    Raises:
        BadInput: it cannot be read, has not finished, or lacks what a comparison needs.
    """
    files = list(folder.glob("*.wandb"))
    if len(files) != 1:
        raise BadInput(f"{folder}: holds {len(files)} files *.wandb, where W&B's client writes one")
    file = files[0]
    name, ended = file.stem, False
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    for record in _records(file):
        kind = str(record.get("type"))
        part = record.get(kind) or {}
        if kind == "run":
            config |= (part.get("config") or {}).get("update") or {}
            name = part.get("display_name") or name
        elif kind == "config":
            config |= part.get("update") or {}
        elif kind == "summary":
            summary |= part.get("update") or {}
        elif kind == "history":
            history.append(part.get("item") or {})
        ended = ended or kind == "exit"
    if not ended:
        raise BadInput(f"{folder}: has no end: its run was killed, or is still going")
    return rows.measured(str(folder), name, config, summary, history)


def _records(file: Path) -> Iterator[dict[str, Any]]:
    """The log's records; a torn one at its end is left out by the client."""
    try:
        inspected = subprocess.run(
            [*READ, file],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
            env=os.environ | {"WANDB_ERROR_REPORTING": "false"},
        )
    except subprocess.TimeoutExpired:
        raise BadInput(f"{file}: W&B's client did not read it within {TIMEOUT_S} s") from None
    except (OSError, subprocess.CalledProcessError) as error:
        words = str(getattr(error, "stderr", None) or error).strip().splitlines()
        why = words[-1] if words else "no message"
        raise BadInput(
            f"{file}: W&B's client cannot read it ({why}): it needs wandb 0.31 or newer"
        ) from None
    for line in inspected.stdout.splitlines():
        yield json.loads(line)
