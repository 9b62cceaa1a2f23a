"""A finished run in the form in which runs are compared, whatever its source."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.config import Config, changing, flat

Column = NDArray[np.float64]

TRAIN_COLUMNS = (
    "attempt", "epoch", "step", "images_seen", "train_s", "loss", "images_per_second",
    "step_ms_p50", "step_ms_p95", "data_wait_pct", "memory_peak_gib",
)  # fmt: skip
VAL_COLUMNS = ("epoch", "step", "images_seen", "train_s", "val_top1_pct", "val_top5_pct", "val_s")

NEEDED = (
    "model", "classes", "protocol", "val_images", "val_digest", "world_size", "device", "precision",
    "compiled", "source", "val_top1_pct", "recompiles", "graph_breaks", "wall_s",
)  # fmt: skip
"""Fields of a Result without which a run cannot be compared."""

RESOLVED = {
    "engine.precision": "precision",
    "engine.compile": "compiled",
    "engine.device": "device",
    "engine.threads": "compute_threads",
    "data.threads": "loader_threads",
    "data.decode": "decode",
}
"""Settings that may be `auto` -> the field of a Result that holds the value that was used."""


@dataclass(frozen=True)
class Measured:
    """A finished run."""

    address: str  # from which it can be read again
    name: str
    config: Config
    environment: Mapping[str, Any]  # software and hardware, as in environment.json; may be empty
    result: Mapping[str, Any]  # fields of schema.Result; without those that the source lacks
    train: Mapping[str, Column]  # of the rows that end a log period; nan where one has no value
    val: Mapping[str, Column]  # of the rows that end a validation, likewise


def columns(rows: Iterable[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Column]:
    """Return one array per column; nan where a row has no value."""
    table = [[row.get(name) for name in names] for row in rows]
    values = np.array(table, dtype=np.float64).reshape(len(table), len(names))
    return dict(zip(names, values.T, strict=True))


def facts(run: Measured) -> dict[str, dict[str, Any]]:
    """Return all that may explain a difference, in groups; not the seed, paths and names."""
    about, result = run.environment, run.result
    used = {key: result[field] for key, field in RESOLVED.items() if field in result}
    values = flat(run.config) | used
    keys = dict.fromkeys(changing(run.config, "result") + changing(run.config, "speed"))
    ranks = ("world_size", "accumulate", "local_batch")
    devices = {
        f"{name} {key}": value for name in ("device", "cpu")
        for key, value in _part(about, name).items()
    }  # fmt: skip
    data = ("classes", "train_images", "train_digest", "val_images", "val_digest", "protocol")
    software = _part(about, "harness") | _part(about, "versions") | _part(about, "variables")
    return {
        "setting": {key: values[key] for key in keys if key != "run.seed"},
        "software": {key: software[key] for key in software if not key.startswith("WANDB_")},
        "hardware": {name: result.get(name) for name in ranks} | devices,
        "data": {name: result.get(name) for name in data},
    }


def identity(run: Measured) -> str:
    """Return a key that is equal for runs that may be averaged: a cell."""
    groups = facts(run).items()
    return repr(sorted((group, sorted(part.items(), key=str)) for group, part in groups))


def _part(facts: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = facts.get(name)
    return dict(part) if isinstance(part, Mapping) else {}
