"""Energy: read a GPU's energy counter (NVML). CPUs are not measured."""

from __future__ import annotations

import math

import torch

from harness.monitor.gpus import Nvml


class Energy:
    """The energy used by a device between marks."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = Nvml(device)
        self._since = math.nan

    def mark(self) -> None:
        """Start counting."""
        self._since = self._now()

    def used_j(self) -> float:
        """Return the joules since the last mark (nan if not measured), and start counting again."""
        before = self._since
        self.mark()
        return self._since - before

    def _now(self) -> float:
        joules = self._gpu.energy_j()
        return math.nan if joules is None else joules
