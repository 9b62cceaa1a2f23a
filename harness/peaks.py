"""Peaks: how many operations and bytes per second a device can do at most, printed or measured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from harness import probes

TABLE = Path(__file__).with_name("peaks.yaml")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32}


@dataclass(frozen=True)
class Peaks:
    """Of one device, at one precision; where the numbers are from, in words."""

    flops_per_s: float
    bytes_per_s: float
    source: str


def measured(device: torch.device, precision: str, *, limit_s: float = 0.5) -> Peaks:
    """What a matrix product and a copy reach here, beside whatever else runs at the moment."""
    dtype = DTYPES.get(precision, torch.float32)
    return Peaks(
        probes.matmul_flops(device, dtype, limit_s=limit_s),
        probes.copy_speed(device, limit_s=limit_s),
        "measured: matrix product, copy",
    )


def printed_for(device: torch.device, precision: str) -> Peaks | None:
    """The table's row for this device, if it is a GPU of the table."""
    on_gpu = device.type == "cuda"
    return printed(torch.cuda.get_device_name(device), precision) if on_gpu else None


def printed(name: str, precision: str) -> Peaks | None:
    """The table's row for a GPU; none if it, or the precision, is not in the table.

    Args:
        name: as the driver gives it, to the letter: of like names, a longer one does less.
    """
    row = table().get(name, {})
    if precision not in row:
        return None
    return Peaks(1e12 * row[precision], 1e9 * row["memory"], str(row["source"]))


@cache
def table() -> dict[str, dict[str, Any]]:
    """Name of a GPU -> its row: TFLOP/s of each precision, GB/s of `memory`, `source`."""
    table: dict[str, dict[str, Any]] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return table
