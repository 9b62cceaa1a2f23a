"""Read the driver and the GPUs of a node from NVML.

A field that the driver, the GPU or pynvml does not support is None.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.monitor.environment import GIB
from harness.monitor.gpus import SM_CLOCK, WITHOUT_RESERVED, Nvml, call
from harness.system.deadline import NoAnswer, within

_MOST_LINKS = 36  # NVML_NVLINK_MAX_LINKS; NVML refuses the numbers that a GPU does not have
_UNCORRECTED_NOW = (1, 0)  # NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC


class DriverError(Exception):
    """NVML is installed but fails; carries its message."""


@dataclass(frozen=True)
class Gpu:
    """The state of one GPU.

    Attributes:
        power_cap_w: the enforced power limit, the lowest of all that apply.
        slowed: the current reasons for reduced clocks, keys of `monitor.gpus.SLOWED`.
        uncorrected_errors: uncorrected memory errors since the driver was loaded.
        repair_pending: memory rows or pages wait for a reset to be replaced, or cannot be.
    """

    name: str
    uuid: str
    mig: bool
    memory_gib: float | None
    memory_used_gib: float | None
    clock_mhz: float | None
    max_clock_mhz: float | None
    power_cap_w: float | None
    default_power_cap_w: float | None
    slowed: tuple[str, ...]
    ecc: bool | None
    uncorrected_errors: int | None
    repair_pending: bool
    pcie_width: float | None
    max_pcie_width: float | None
    max_pcie_generation: float | None
    nvlinks: int | None
    nvlinks_active: int | None


@dataclass(frozen=True)
class Driver:
    """The version of the driver, the newest CUDA that it supports, and its GPUs."""

    version: str | None
    cuda: str | None
    gpus: tuple[Gpu, ...]


def inventory(limit_s: float) -> Driver | None:
    """Return the driver and all its GPUs, also those of other jobs; None if NVML is not installed.

    Raises:
        DriverError: NVML reports an error, or does not answer within `limit_s` seconds.
    """
    try:
        # The forked process initializes NVML itself: NVML does not survive a fork.
        return within(limit_s, _inventory)
    except NoAnswer as error:
        raise DriverError(str(error)) from None


def _inventory() -> Driver | None:
    import pynvml

    try:
        pynvml.nvmlInit()
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        gpus = tuple(gpu_facts(Nvml(handle=handle)) for handle in handles)
    except pynvml.NVMLError_LibraryNotFound:
        return None
    except pynvml.NVMLError as error:
        raise DriverError(str(error)) from None
    cuda = call("nvmlSystemGetCudaDriverVersion_v2")
    return Driver(
        version=call("nvmlSystemGetDriverVersion"),
        cuda=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
        gpus=gpus,
    )


def gpu_facts(gpu: Nvml) -> Gpu:
    """Return the state of one GPU."""
    memory = gpu.read("nvmlDeviceGetMemoryInfo", WITHOUT_RESERVED)
    cap = gpu.read("nvmlDeviceGetEnforcedPowerLimit")
    if cap is None:
        cap = gpu.read("nvmlDeviceGetPowerManagementLimit")
    default_cap = gpu.read("nvmlDeviceGetPowerManagementDefaultLimit")
    ecc, mig = gpu.read("nvmlDeviceGetCurrentEccMode"), gpu.read("nvmlDeviceGetMigMode")
    pages = gpu.read("nvmlDeviceGetRetiredPagesPendingStatus")
    rows = gpu.read("nvmlDeviceGetRemappedRows")  # corrected, uncorrected, pending, failed
    states = [gpu.read("nvmlDeviceGetNvLinkState", link) for link in range(_MOST_LINKS)]
    links = [state for state in states if state is not None]
    return Gpu(
        name=gpu.read("nvmlDeviceGetName") or "unnamed GPU",
        uuid=gpu.read("nvmlDeviceGetUUID") or "",
        mig=bool(mig and mig[0]),
        memory_gib=None if memory is None else memory.total / GIB,
        memory_used_gib=gpu.memory_used_gib(),
        clock_mhz=gpu.read("nvmlDeviceGetClockInfo", SM_CLOCK),
        max_clock_mhz=gpu.read("nvmlDeviceGetMaxClockInfo", SM_CLOCK),
        power_cap_w=_watts(cap),
        default_power_cap_w=_watts(default_cap),
        slowed=gpu.slowed() or (),
        ecc=None if ecc is None else bool(ecc),
        uncorrected_errors=gpu.read("nvmlDeviceGetTotalEccErrors", *_UNCORRECTED_NOW),
        repair_pending=bool(pages or (rows and any(rows[2:]))),
        pcie_width=gpu.read("nvmlDeviceGetCurrPcieLinkWidth"),
        max_pcie_width=gpu.read("nvmlDeviceGetMaxPcieLinkWidth"),
        max_pcie_generation=gpu.read("nvmlDeviceGetMaxPcieLinkGeneration"),
        # If no link is up, the GPU could have an NVLink bridge but has none.
        nvlinks=len(links) if any(links) else None,
        nvlinks_active=sum(links) if any(links) else None,
    )


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000
