"""NVML: read a GPU's energy, clocks and memory through pynvml, in microseconds. None: unknown."""

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
"""Reasons for reduced clocks: the ends of nvidia-smi's field names -> descriptions."""

HARMLESS = frozenset({"sw_power_cap"})
"""A busy GPU runs at its power cap, which is a setting."""

_BITS = {
    "sw_power_cap": 0x04,
    "hw_slowdown": 0x08,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake_slowdown": 0x80,
}
"""nvmlClocksEventReason... of nvml.h; pynvml has names for them only since 12.535."""
SM_CLOCK = 1  # NVML_CLOCK_SM
WITHOUT_RESERVED = 0x02000028  # nvmlMemory_v2: `used` is without the driver's reserved memory


class Nvml:
    """A GPU, given as NVML's handle or as a device of this process; for a CPU all is None."""

    def __init__(self, device: torch.device | None = None, handle: object = None) -> None:
        self._handle = handle
        if device is not None and device.type == "cuda":
            import pynvml  # of no use without a GPU

            with suppress(pynvml.NVMLError):
                pynvml.nvmlInit()
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(gpu_uuid(device))

    def energy_j(self) -> float | None:
        """Return the energy counter in joules; None for GPUs before Volta."""
        millijoules = self.read("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1000

    def slowed(self) -> tuple[str, ...] | None:
        """Return the keys of SLOWED that reduce the clocks now."""
        bits = self.read("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:  # a driver before 535
            bits = self.read("nvmlDeviceGetCurrentClocksThrottleReasons")
        return None if bits is None else tuple(name for name in SLOWED if bits & _BITS[name])

    def memory_used_gib(self) -> float | None:
        """Return the memory used by all processes; None with drivers before 510."""
        memory = self.read("nvmlDeviceGetMemoryInfo", WITHOUT_RESERVED)
        return None if memory is None else memory.used / GIB

    def description(self) -> list[str]:
        """Return serial number, clock and reasons for reduced clocks as text, as far as known."""
        serial = self.read("nvmlDeviceGetSerial")
        now, most = (self.read(f"nvmlDeviceGet{which}ClockInfo", SM_CLOCK) for which in ("", "Max"))
        clock = None if now is None or most is None else f"{now} of {most} MHz"
        facts = (f"serial {serial}" if serial else None, clock)
        return [*filter(None, facts), *(SLOWED[reason] for reason in self.slowed() or ())]

    def read(self, function: str, *args: int) -> Any:
        """Call a function of pynvml for this GPU; return None if it fails."""
        return None if self._handle is None else call(function, self._handle, *args)


def call(function: str, *args: object) -> Any:
    """Call a function of pynvml; return None if pynvml, driver or GPU do not support it."""
    import pynvml

    try:
        return getattr(pynvml, function)(*args)
    except (AttributeError, pynvml.NVMLError):  # if the GPU was lost, training fails by itself
        return None
