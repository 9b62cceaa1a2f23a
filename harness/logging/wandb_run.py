"""A run as W&B gets it, from the live mirror and from `harness publish`; imports no client."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from harness.config import Config, fingerprint
from harness.logging.schema import RESULT_PREFIX, ROW_KEYS


def about(
    config: Config,
    environment: Mapping[str, Any],
    *,
    world_size: int,
    precision: str,
    peak_lr: float | None,
) -> dict[str, Any]:
    """Group, job type, tags and config of a run, as WandbMirror takes them.

    Args:
        environment: content of environment.json.
        world_size, precision, peak_lr: what the config came to; no peak where nothing is trained.
    """
    # What restarts a run is said by the command, not by the record of it: as in config.yaml.
    plain = config.run.model_copy(update={"restart": False, "dry_run": False})
    asked = config.model_copy(update={"run": plain}).model_dump(mode="json")
    derived = {"world_size": world_size, "precision": precision, "peak_lr": peak_lr}
    return {
        "group": group(config, environment, world_size),
        "job_type": config.run.mode,
        "tags": (config.model.name, config.data.source, precision, *config.log.tags),
        "config": asked | {"resolved": derived, "environment": dict(environment)},
    }


def group(config: Config, environment: Mapping[str, Any], world_size: int) -> str:
    """The cell of a comparison, as far as it is known when a run starts: all but the seed.

    Such as `resnet50-8xH100-1a2b3c4d`: what tells apart settings, ranks and devices is hashed.
    """
    seedless = config.model_copy(update={"run": config.run.model_copy(update={"seed": 0})})
    device = environment.get("device")
    device = device if isinstance(device, Mapping) else {}
    told = [
        fingerprint(seedless, "result"),
        fingerprint(seedless, "speed"),
        str(world_size),
        str(device.get("name")),
    ]
    cell = hashlib.sha256("\n".join(told).encode()).hexdigest()[:8]
    return f"{config.model.name}-{world_size}x{_short(device)}-{cell}"


def row_for_wandb(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as W&B gets it: under its keys, nulls left out."""
    return {ROW_KEYS[k]: v for k, v in row.items() if k in ROW_KEYS and v is not None}


def result_for_wandb(result: Mapping[str, Any]) -> dict[str, Any]:
    """A Result as W&B's summary: scalars only, as its tables cannot filter by anything else."""
    accounts = {f"account_{name}_s": s for name, s in result.get("accounts_s", {}).items()}
    target = {f"target_{name}": value for name, value in (result.get("target") or {}).items()}
    # How the mirror ended is not known while it still runs.
    values = {k: v for k, v in result.items() if k != "wandb"} | accounts | target
    return {RESULT_PREFIX + k: v for k, v in values.items() if isinstance(v, str | int | float)}


def _short(device: Mapping[str, Any]) -> str:
    """A device in a word: `H100` of `NVIDIA H100 80GB HBM3`."""
    if device.get("type") != "cuda":
        return str(device.get("type", "unknown"))
    model = re.search(r"[A-Za-z]*\d\w*", str(device.get("name")))
    return model[0] if model else "cuda"
