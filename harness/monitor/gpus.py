"""GPUs, read through NVML in microseconds: energy, clocks, memory. None: unknown."""

import math
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch

from harness.distributed import World

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

EVERY_S = 10.0
LEAST_SHARE = 0.1
"""Share of samples above which a reason is reported; a few may be due to a previous run's heat."""
MOST_RANKS = 8
"""Ranks listed in a message."""


class Nvml:
    """A GPU, given as NVML's handle or as a device of this process; for a CPU all is None."""

    def __init__(self, device: torch.device | None = None, handle: object = None) -> None:
        self._handle, self._joules = handle, math.nan
        if device is not None and device.type == "cuda":
            import pynvml  # of no use without a GPU

            with suppress(pynvml.NVMLError):
                pynvml.nvmlInit()
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(gpu_uuid(device))

    def used_j(self) -> float:
        """Return the joules used since the last call; nan at first, and before Volta."""
        before, millijoules = self._joules, self.read("nvmlDeviceGetTotalEnergyConsumption")
        self._joules = math.nan if millijoules is None else millijoules / 1000
        return self._joules - before

    def slowed(self) -> tuple[str, ...] | None:
        """Return the keys of SLOWED that reduce the clocks now."""
        bits = self.read("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:  # a driver before 535
            bits = self.read("nvmlDeviceGetCurrentClocksThrottleReasons")
        return None if bits is None else tuple(name for name in SLOWED if bits & _BITS[name])

    def memory_used_gib(self) -> float | None:
        """Return the memory used by all processes; None with drivers before 510."""
        memory = self.read("nvmlDeviceGetMemoryInfo", WITHOUT_RESERVED)
        return None if memory is None else memory.used / 2**30

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


def gpu_uuid(device: torch.device) -> str:
    """Return a GPU's UUID, as nvidia-smi prints it."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


class Throttle:
    """Polls the clocks of this rank's GPU every few seconds in a thread."""

    def __init__(self, device: torch.device, every_s: float = EVERY_S) -> None:
        self._gpu = Nvml(device)
        self.slowed: list[str] = []  # after `end`, why clocks were reduced in many samples
        self._every_s = every_s
        self._counts: Counter[str] = Counter()
        self._samples = 0
        self._stop = threading.Event()
        # A daemon thread, since a call may hang with the driver, and the run must still end.
        threading.Thread(target=self._watch, name="throttle", daemon=True).start()

    def end(self, world: World) -> None:
        """Stop polling and gather all ranks' reasons; a collective call."""
        self._stop.set()
        own = [reason for reason in SLOWED if self._counts[reason] > LEAST_SHARE * self._samples]
        self.slowed = in_words(world.gather(own))

    def _watch(self) -> None:
        while not self._stop.wait(self._every_s):
            reasons = self._gpu.slowed()
            if reasons is not None:
                self._samples += 1
                self._counts.update(set(reasons) - HARMLESS)


def in_words(reasons: Sequence[Sequence[str]]) -> list[str]:
    """Describe each rank's reasons for reduced clocks, keys of SLOWED; with ranks if several."""
    lines = []
    for reason, description in SLOWED.items():
        ranks = [str(rank) for rank, own in enumerate(reasons) if reason in own]
        more = f" and {len(ranks) - MOST_RANKS} more" if len(ranks) > MOST_RANKS else ""
        listed = f": rank {', '.join(ranks[:MOST_RANKS])}{more}" if len(reasons) > 1 else ""
        lines += [f"{description}{listed}"] if ranks else []
    return lines
