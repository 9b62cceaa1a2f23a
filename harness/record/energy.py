"""Energy: what a GPU has used, by its own counter (NVML); nothing is known of a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from harness.record.environment import gpu_uuid


class Energy:
    """A device's counter, read at log points.

    Args:
        counter: joules since some time, on call; none: not measured.
    """

    def __init__(self, counter: Callable[[], float] | None) -> None:
        self._counter = counter
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
        return math.nan if self._counter is None else self._counter()


def counter_of(device: torch.device) -> Callable[[], float] | None:
    """The counter of a GPU; none for a CPU, or a GPU (before Volta) or driver without one."""
    if device.type != "cuda":
        return None
    import pynvml  # of no use without a GPU

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(gpu_uuid(device))
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None

    def joules() -> float:
        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
        except pynvml.NVMLError:  # the GPU was lost; training will say so
            return math.nan

    return joules
