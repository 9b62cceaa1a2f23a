"""Peaks: the maximum FLOP/s and bytes/s of a device, from its data sheet or measured."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from harness import config as cfg
from harness.models import build
from harness.models.summary import layers, total
from harness.models.zoo import MODELS
from harness.monitor import probes

TABLE = Path(__file__).with_name("peaks.yaml")
SHARE_OF_MATMUL = {"cuda": 0.25, "cpu": 1.2}
"""Upper bound of ResNet training's FLOP/s, as a share of a matrix product's. GPU: MLPerf v3.1 on
H100, 7,053 images/s of 24.5 GFLOP each, is 173 TFLOP/s, where a product reaches about 700. CPU (2
cores of an AMD EPYC): a 3x3 convolution reached 1.1 to 1.2 times the product's rate."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32}


@dataclass(frozen=True)
class Peaks:
    """The peaks of one device at one precision, and a description of their source."""

    flops_per_s: float
    bytes_per_s: float
    source: str


def measured(device: torch.device, precision: str, *, limit_s: float = 0.5) -> Peaks:
    """Measure a matrix product and a copy on this device; other load lowers the result."""
    dtype = DTYPES.get(precision, torch.float32)
    return Peaks(
        probes.matmul_flops(device, dtype, limit_s=limit_s),
        probes.copy_speed(device, limit_s=limit_s),
        "measured: matrix product, copy",
    )


def training_bound(config: cfg.Config, device_type: str, flops_per_s: float) -> float:
    """Return an upper bound of training's images/s at a matrix product's rate on all devices."""
    with torch.device("meta"):
        net = build(config.model, MODELS[config.model.name].classes)
    gmacs = total(layers(net, config.data.image_px)).gmacs
    # Forward once, backward twice; a multiply-add is two operations.
    return SHARE_OF_MATMUL[device_type] * flops_per_s / (6e9 * gmacs)


def printed_for(device: torch.device, precision: str) -> Peaks | None:
    """Return the data sheet's peaks of this device; None for a CPU or an unknown GPU."""
    on_gpu = device.type == "cuda"
    return printed(torch.cuda.get_device_name(device), precision) if on_gpu else None


def printed(name: str, precision: str) -> Peaks | None:
    """Return the data sheet's peaks of a GPU; None if it, or the precision, is not in the table.

    It goes by the driver's exact name: variants with a longer name are slower.
    """
    row = table().get(name, {})
    if precision not in row:
        return None
    return Peaks(1e12 * row[precision], 1e9 * row["memory"], str(row["source"]))


@cache
def table() -> dict[str, dict[str, Any]]:
    """Return the table: a GPU's name -> TFLOP/s of each precision, GB/s of `memory`, `source`."""
    table: dict[str, dict[str, Any]] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return table
