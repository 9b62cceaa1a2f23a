"""Peaks: how many operations and bytes per second a device can do at most, printed or measured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from harness import config as cfg
from harness.models import build
from harness.models.summary import layers, total
from harness.monitor import probes

TABLE = Path(__file__).with_name("peaks.yaml")
SHARE_OF_MATMUL = {"cuda": 0.25, "cpu": 1.2}
"""How much of a matrix product's rate ResNet training reaches at the very best. GPU: MLPerf v3.1 on
H100, 7,053 images/s of 24.5 GFLOP each, are 173 TFLOP/s where a plain product reaches about 700. On
a CPU (2 cores of an AMD EPYC) a 3x3 convolution reached 1.1 to 1.2 times the product's rate."""
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


def training_bound(config: cfg.Config, device_type: str, flops_per_s: float) -> float:
    """Images per second that training cannot exceed.

    Args:
        flops_per_s: of a matrix product on all devices together.
    """
    with torch.device("meta"):
        net = build(config.model, 10 if config.model.name in cfg.CIFAR_MODELS else 1000)
    gmacs = total(layers(net, config.data.image_px)).gmacs
    # Forward once, backward twice; a multiply-add is two operations.
    return SHARE_OF_MATMUL[device_type] * flops_per_s / (6e9 * gmacs)


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
