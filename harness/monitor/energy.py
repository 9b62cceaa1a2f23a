"""Energy: what a GPU has used, by its own counter (NVML); nothing is known of a CPU."""

from __future__ import annotations

import math

import torch

from harness.monitor.gpus import Nvml


class Energy:
    """A device's counter, read at log points."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = Nvml(device)
        self._since = math.nan

    def mark(self) -> None:
        """What is used from here on counts."""
        self._since = self._now()

    def used_j(self) -> float:
        """Joules since the last mark, which this is too; nan where they are not measured."""
        before = self._since
        self.mark()
        return self._since - before

    def _now(self) -> float:
        joules = self._gpu.energy_j()
        return math.nan if joules is None else joules
