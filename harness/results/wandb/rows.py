"""Convert what W&B holds of a run to the form in which runs are compared.

The folder that its client writes offline is read by the client's own command.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.config import Config
from harness.errors import BadInput
from harness.logging.schema import RESULT_PREFIX, ROW_KEYS, Result
from harness.results.measured import NEEDED, TRAIN_COLUMNS, VAL_COLUMNS, Measured, columns

READ = (sys.executable, "-m", "wandb", "leet", "inspect", "--json")
SEND = "harness publish RUN_FOLDER --to wandb"
TIMEOUT_S = 60
Facts = Mapping[str, Any]
FIELDS = {key: field for field, key in ROW_KEYS.items()}


def measured(
    address: str, name: str, config: Facts, summary: Facts, history: Iterable[Facts]
) -> Measured:
    """Return a run that W&B describes by config, summary and history, under its keys.

    Raises:
        BadInput: it lacks what a comparison needs, naming the key.
    """
    values = _without(RESULT_PREFIX, summary)
    result = {name: value for name, value in values.items() if name in Result.model_fields}
    accounts = _without("account_", values)
    result["accounts_s"] = {key.removesuffix("_s"): value for key, value in accounts.items()}
    result["target"] = _without("target_", values) or None
    if lacking := [name for name in NEEDED if name not in result]:
        why = f"lacks {RESULT_PREFIX}{lacking[0]}: it has not finished, or was not written by this"
        raise BadInput(f"{address}: {why} harness; send it from its folder: {SEND}")
    try:
        settings = Config.model_validate({k: config[k] for k in Config.model_fields if k in config})
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise BadInput(f"{address}: its config is of another version: {where}") from None
    history = list(history)
    if history and history[0].get("_step", 0) > 0:
        # The client keeps such files on disk of a run that it continued online.
        raise BadInput(f"{address}: lacks the rows of earlier attempts; read them from W&B itself")
    rows = [{FIELDS[key]: value for key, value in row.items() if key in FIELDS} for row in history]
    if result.get("steps", 0) > (last := max((row.get("step", 0) for row in rows), default=0)):
        why = f"has rows up to step {last:,} of {result['steps']:,} only"
        raise BadInput(f"{address}: {why}; complete it from its folder: {SEND}")
    environment = dict(config.get("environment") or {})
    device = environment.get("device")
    if isinstance(device, Mapping) and device.get("memory_gib") is not None:
        # The only float there, of which W&B drops a `.0`.
        environment["device"] = {**device, "memory_gib": float(device["memory_gib"])}
    train = columns((row for row in rows if "images_per_second" in row), TRAIN_COLUMNS)
    val = columns((row for row in rows if "val_top1_pct" in row), VAL_COLUMNS)
    return Measured(address, name, settings, environment, result, train, val)


def _without(prefix: str, values: Facts) -> dict[str, Any]:
    return {
        key.removeprefix(prefix): value
        for key, value in values.items()
        if key.startswith(prefix) and value is not None
    }


def read_offline(folder: Path) -> Measured:
    """Return the run in a folder that W&B's client wrote.

    Raises:
        BadInput: it cannot be read, has not finished, or lacks what a comparison needs.
    """
    files = list(folder.glob("*.wandb"))
    if len(files) != 1:
        raise BadInput(f"{folder}: holds {len(files)} files *.wandb, where W&B's client writes one")
    name, ended, history = files[0].stem, False, []
    updated: dict[str, dict[str, Any]] = {"config": {}, "summary": {}}
    for record in _records(files[0]):
        kind = str(record.get("type"))
        part = record.get(kind) or {}
        if kind == "run":
            name = part.get("display_name") or name
            kind, part = "config", part.get("config") or {}
        if kind in updated:
            updated[kind] |= part.get("update") or {}
        elif kind == "history":
            history.append(part.get("item") or {})
        ended = ended or kind == "exit"
    if not ended:
        raise BadInput(f"{folder}: has no end: its run was killed, or is still going")
    return measured(str(folder), name, updated["config"], updated["summary"], history)


def _records(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of the client's log; it leaves out a torn one at the end."""
    quiet = os.environ | {"WANDB_ERROR_REPORTING": "false"}
    try:
        inspected = subprocess.run(
            [*READ, file], capture_output=True, encoding="utf-8", timeout=TIMEOUT_S, check=True,
            env=quiet,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise BadInput(f"{file}: W&B's client did not read it within {TIMEOUT_S} s") from None
    except (OSError, subprocess.CalledProcessError) as error:
        lines = str(getattr(error, "stderr", None) or error).strip().splitlines()
        why = f"({lines[-1] if lines else 'no message'}): it needs wandb 0.31 or newer"
        raise BadInput(f"{file}: W&B's client cannot read it {why}") from None
    yield from map(json.loads, inspected.stdout.splitlines())
