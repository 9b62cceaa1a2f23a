"""What W&B calls the fields of Row and Result; imports no client, so readers can use it too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEYS = {
    "images_seen": "progress/images",
    "epoch": "progress/epoch",
    "train_s": "progress/seconds",
    "step": "progress/step",
    "attempt": "progress/attempt",
    "wall_s": "progress/attempt_seconds",
    "loss": "train/loss",
    "lr": "train/lr",
    "train_top1_pct": "train/top1_pct",
    "train_top5_pct": "train/top5_pct",
    "loss_scale": "train/loss_scale",
    "images_per_second": "perf/images_per_second",
    "step_ms_mean": "perf/step_ms_mean",
    "step_ms_p50": "perf/step_ms_p50",
    "step_ms_p95": "perf/step_ms_p95",
    "data_wait_pct": "perf/data_wait_pct",
    "memory_peak_gib": "mem/peak_gib",
    "compute_ms_median": "perf/compute_ms_median",
    "compute_ms_slowest": "perf/compute_ms_slowest",
    "slowest_rank": "perf/slowest_rank",
    "data_wait_most_pct": "perf/data_wait_most_pct",
    "power_w": "perf/power_w",
    "images_per_joule": "perf/images_per_joule",
    "mfu_pct": "perf/mfu_pct",
    "memory_pct": "perf/memory_pct",
    "val_loss": "val/loss",
    "val_top1_pct": "val/top1_pct",
    "val_top5_pct": "val/top5_pct",
    "val_images": "val/images",
    "val_s": "val/seconds",
}
"""Field of schema.Row -> key in W&B."""

NOT_MIRRORED = frozenset({"schema_version", "kind", "events"})
"""Fields of schema.Row that W&B does not show: keys tell a row's kind, the rate tells an event."""


RESULT = "result/"
"""What the summary's keys of a Result begin with."""


def row_for_wandb(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as W&B gets it: under its keys, nulls left out."""
    return {KEYS[k]: v for k, v in row.items() if k in KEYS and v is not None}


def result_for_wandb(result: Mapping[str, Any]) -> dict[str, Any]:
    """A Result as W&B's summary: scalars only, as its tables cannot filter by anything else."""
    accounts = {f"account_{name}_s": s for name, s in result.get("accounts_s", {}).items()}
    target = {f"target_{name}": value for name, value in (result.get("target") or {}).items()}
    # How the mirror ended is not known while it still runs.
    values = {k: v for k, v in result.items() if k != "wandb"} | accounts | target
    return {RESULT + k: v for k, v in values.items() if isinstance(v, str | int | float)}
