"""NVML: what a GPU, its driver and pynvml know of it, in microseconds; null is what they do not."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch

from harness.monitor.environment import GIB, gpu_uuid

SLOWED = {
    "hw_thermal_slowdown": "too hot (hardware)",
    "hw_power_brake_slowdown": "power brake (hardware)",
    "hw_slowdown": "slowed by hardware",
    "sw_thermal_slowdown": "too hot (driver)",
    "sw_power_cap": "at its power cap",
}
"""Why clocks are held down, as nvidia-smi's fields end -> in words."""

HARMLESS = frozenset({"sw_power_cap"})
"""A GPU that is well used works at its power cap: the cap is a setting."""

_BITS = {
    "sw_power_cap": 0x04,
    "hw_slowdown": 0x08,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake_slowdown": 0x80,
}
"""As nvml.h has nvmlClocksEventReason...; pynvml's own names came with its version 12.535."""
SM_CLOCK = 1  # NVML_CLOCK_SM
WITHOUT_RESERVED = 0x02000028  # nvmlMemory_v2: what the driver keeps for itself is not in use


class Nvml:
    """A GPU, by NVML's handle or as a device of this process; of a CPU nothing is known."""

    def __init__(self, device: torch.device | None = None, handle: object = None) -> None:
        self._handle = handle
        if device is not None and device.type == "cuda":
            import pynvml  # of no use without a GPU

            with suppress(pynvml.NVMLError):
                pynvml.nvmlInit()
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(gpu_uuid(device))

    def energy_j(self) -> float | None:
        """Joules since some time; GPUs before Volta do not count."""
        millijoules = self.read("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1000

    def slowed(self) -> tuple[str, ...] | None:
        """Keys of SLOWED for which clocks are held down right now."""
        bits = self.read("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:  # a driver before 535
            bits = self.read("nvmlDeviceGetCurrentClocksThrottleReasons")
        return None if bits is None else tuple(name for name in SLOWED if bits & _BITS[name])

    def memory_used_gib(self) -> float | None:
        """By all processes; drivers before 510 do not tell."""
        memory = self.read("nvmlDeviceGetMemoryInfo", WITHOUT_RESERVED)
        return None if memory is None else memory.used / GIB

    def description(self) -> list[str]:
        """Serial number, clock and what slows it right now, in words, as far as it is told."""
        serial = self.read("nvmlDeviceGetSerial")
        now, most = (self.read(f"nvmlDeviceGet{which}ClockInfo", SM_CLOCK) for which in ("", "Max"))
        clock = None if now is None or most is None else f"{now} of {most} MHz"
        facts = (f"serial {serial}" if serial else None, clock)
        return [*filter(None, facts), *(SLOWED[reason] for reason in self.slowed() or ())]

    def read(self, function: str, *args: int) -> Any:
        """What a function of pynvml returns for this GPU; null where it is not known."""
        return None if self._handle is None else call(function, self._handle, *args)


def call(function: str, *args: object) -> Any:
    """What a function of pynvml returns; null where it, its driver or its GPU does not know."""
    import pynvml

    try:
        return getattr(pynvml, function)(*args)
    except (AttributeError, pynvml.NVMLError):  # if the GPU was lost, training will say so
        return None
