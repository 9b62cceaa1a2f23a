"""GPUs: are they all there, healthy, and as fast as they could be?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from harness.doctor import limits
from harness.doctor.check import Asked, Check, Facts, green, not_checked, red, span, yellow
from harness.doctor.inventory import DriverFails, inventory
from harness.monitor.environment import gpu_uuid
from harness.monitor.gpus import HARMLESS, SLOWED, Nvml

Gpus = list[dict[str, Any]]


def look(asked: Asked) -> Facts:
    """What NVML and torch say of the node's GPUs, and this rank's GPU before it is used."""
    facts: Facts = {"gpus_expected": asked.gpus, "gpus_of_torch": torch.cuda.device_count()}
    facts["own_gpu"] = _own(asked.world.device)
    if asked.world.local_rank:
        return facts
    facts |= {"gpus": [], "smi": None, "driver": None, "driver_cuda": None, "cuda_error": None}
    try:
        driver = inventory(limits.NVML_S)
    except DriverFails as error:
        return facts | {"smi": str(error)}
    if driver is None:
        return facts
    gpus = [asdict(gpu) for gpu in driver.gpus]
    facts |= {"driver": driver.version, "driver_cuda": driver.cuda, "gpus": gpus}
    if gpus and asked.wants_gpu and not torch.cuda.is_available():
        facts["cuda_error"] = _cuda_error()
    elif asked.world.on_gpu:
        # On a shared node NVML may list GPUs of other jobs too.
        seen = {f"GPU-{torch.cuda.get_device_properties(n).uuid}"
                for n in range(torch.cuda.device_count())}  # fmt: skip
        facts["gpus"] = [gpu for gpu in gpus if gpu["uuid"] in seen] or gpus
    return facts


def judge(ranks: Sequence[Facts], asked: Asked) -> list[Check]:
    """The checks of one node, from the facts of its ranks; the first is local rank 0."""
    first = ranks[0]
    first = first | {"gpus": _before_use(first["gpus"], ranks)}
    gpus, seen, expected = first["gpus"], first["gpus_of_torch"], first["gpus_expected"]
    if not asked.wants_gpu:
        return [not_checked("GPUs", "engine.device is cpu")]
    if first["smi"] is not None and expected:
        what = f"the NVIDIA driver fails: {first['smi']}"
        return [red("GPUs", what, "take another node; here the driver must be loaded again")]
    # Where CUDA does not start, that is one fault, and another check tells it.
    usable = len(gpus) if first["cuda_error"] else seen
    if usable < expected:
        return [red("GPUs", f"{usable} of {expected} expected", _where_are_they(first, asked))]
    if not usable:
        why = f" ({first['smi']})" if first["smi"] else ""
        return [not_checked("GPUs", f"none here{why}; this run would compute on the CPU")]
    if not gpus:
        return [green("GPUs", f"{usable}; NVML is not there to tell more")]
    return [judge_one(gpus) for judge_one in _OF_GPUS]


def _own(device: torch.device) -> Facts:
    """State of this rank's GPU; of others it cannot tell whether their ranks compute already."""
    if device.type != "cuda":
        return {}
    gpu = Nvml(device)
    state = {"memory_used_gib": gpu.memory_used_gib(), "slowed": gpu.slowed()}
    known = {name: value for name, value in state.items() if value is not None}
    return {"uuid": gpu_uuid(device)} | known


def _before_use(gpus: Gpus, ranks: Sequence[Facts]) -> Gpus:
    """NVML's GPUs in the state in which their own ranks have met them.

    The driver may first have to wake, while other ranks have begun to multiply matrices.
    """
    own = {facts["own_gpu"]["uuid"]: facts["own_gpu"] for facts in ranks if facts["own_gpu"]}
    return [gpu | own.get(gpu["uuid"], {}) for gpu in gpus]


def _where_are_they(facts: Facts, asked: Asked) -> str:
    listed, mask = len(facts["gpus"]), asked.environ.get("CUDA_VISIBLE_DEVICES")
    if mask is not None and listed > facts["gpus_of_torch"]:
        return f"CUDA_VISIBLE_DEVICES={mask} hides some of {listed}: unset it, or start fewer ranks"
    if not listed and facts["smi"] is None and facts["driver"] is None:
        return (
            "there is no NVIDIA driver: ask for a GPU node (sbatch --gpus-per-node), or give "
            "--engine.device cpu"
        )
    return (
        "ask for as many with sbatch --gpus-per-node; if they were granted, one has fallen off "
        "the bus (dmesg | grep -i xid): take another node"
    )


def _known(gpus: Gpus, field: str) -> list[float]:
    return [gpu[field] for gpu in gpus if gpu[field] is not None]


def _numbers(gpus: Gpus, bad: Callable[[dict[str, Any]], bool]) -> str:
    """Which GPUs, by their number in NVML's list, and nvidia-smi's."""
    return "GPU " + ", ".join(str(number) for number, gpu in enumerate(gpus) if bad(gpu))


def _judge_models(gpus: Gpus) -> Check:
    names = sorted({gpu["name"] for gpu in gpus})
    memory = _known(gpus, "memory_gib")
    size = f", {span(memory, '.0f')} GiB each" if memory else ""
    value = f"{len(gpus)} x {' and '.join(names)}{size}"
    if len(names) > 1:
        return yellow("GPUs", value, "all wait for the slowest model: run on one kind alone")
    if any(gpu["mig"] for gpu in gpus):
        return yellow("GPUs", f"{value}, cut by MIG", "a slice is no whole GPU: switch MIG off")
    used = _known(gpus, "memory_used_gib")
    if used and max(used) > limits.MEMORY_USED_GIB:
        which = _numbers(gpus, lambda gpu: (gpu["memory_used_gib"] or 0) > limits.MEMORY_USED_GIB)
        what = f"{value}; {which}: {max(used):.1f} GiB in use"
        return yellow("GPUs", what, "somebody computes there: see nvidia-smi")
    return green("GPUs", value)


def _judge_clocks(gpus: Gpus) -> Check:
    now, most = _known(gpus, "clock_mhz"), _known(gpus, "max_clock_mhz")
    cap, default = _known(gpus, "power_cap_w"), _known(gpus, "default_power_cap_w")
    parts = [f"{span(now)} MHz now"] if now else []
    parts += [f"at most {span(most)} MHz"] if most else []
    parts += [f"power cap {span(cap)} W of {span(default)} W"] if cap and default else []
    value = ", ".join(parts) or "the driver does not tell"

    def capped(gpu: dict[str, Any]) -> bool:
        cap, default = gpu["power_cap_w"], gpu["default_power_cap_w"]
        return bool(cap and default and cap < limits.POWER_CAP * default)

    if any(map(capped, gpus)):
        what = f"{value} ({_numbers(gpus, capped)})"
        return yellow("GPU clocks, power", what, "state the cap beside results, or nvidia-smi -pl")
    return green("GPU clocks, power", value) if parts else not_checked("GPU clocks, power", value)


def _judge_slowed(gpus: Gpus) -> Check:
    bad = [reason for reason in SLOWED if reason not in HARMLESS]
    reasons = [reason for reason in bad if any(reason in gpu["slowed"] for gpu in gpus)]
    if not reasons:
        return green("GPU throttling", "none right now")
    which = {reason: _numbers(gpus, lambda gpu: reason in gpu["slowed"]) for reason in reasons}  # noqa: B023
    value = "; ".join(f"{which[reason]}: {SLOWED[reason]}" for reason in reasons)
    if any(reason.startswith("hw_") for reason in reasons):
        return red(
            "GPU throttling", value, "cooling or power supply is at fault: take another node"
        )
    return yellow("GPU throttling", value, "before a measurement wait, or take another node")


def _judge_errors(gpus: Gpus) -> Check:
    counted = _known(gpus, "uncorrected_errors")
    ecc = {True: "on", False: "off", None: "not there"}
    state = " and ".join(sorted({ecc[gpu["ecc"]] for gpu in gpus}))
    if sum(counted):
        which = _numbers(gpus, lambda gpu: bool(gpu["uncorrected_errors"]))
        what = f"{int(sum(counted))} uncorrected since the driver was loaded ({which})"
        return red("GPU memory errors", what, "take another node; this GPU needs a reset")
    if any(gpu["repair_pending"] for gpu in gpus):
        which = _numbers(gpus, lambda gpu: bool(gpu["repair_pending"]))
        what = f"{which}: memory waits for its repair or cannot be repaired"
        return yellow("GPU memory errors", what, "have the GPU reset before a long run")
    return green("GPU memory errors", f"{'none' if counted else 'not counted'}; ECC is {state}")


def _judge_nvlink(gpus: Gpus) -> Check:
    active = _known(gpus, "nvlinks_active")
    if not active:
        return not_checked("NVLink", "the driver lists no links: GPUs talk over PCIe")
    value = f"{span(active)} links up of {span(_known(gpus, 'nvlinks'))} per GPU"
    if len(set(active)) > 1 or len(active) < len(gpus):
        few = max(active)
        which = _numbers(gpus, lambda gpu: (gpu["nvlinks_active"] or 0) < few)
        return yellow("NVLink", f"{value}; fewer: {which}", "a link is down: take another node")
    return green("NVLink", value)


def _judge_pcie(gpus: Gpus) -> Check:
    width, most = _known(gpus, "pcie_width"), _known(gpus, "max_pcie_width")
    if not width or not most:
        return not_checked("PCIe", "the driver does not tell")
    generation = _known(gpus, "max_pcie_generation")
    value = f"x{span(width, '.0f')} of x{span(most, '.0f')}"
    value += f", generation {span(generation, '.0f')}" if generation else ""

    def narrow(gpu: dict[str, Any]) -> bool:
        return bool((gpu["pcie_width"] or 0) < (gpu["max_pcie_width"] or 0))

    if any(map(narrow, gpus)):
        what = f"{value} ({_numbers(gpus, narrow)})"
        return yellow("PCIe", what, "badly seated or a narrow slot: images arrive slower")
    return green("PCIe", value)


_OF_GPUS = (
    _judge_models, _judge_clocks, _judge_slowed, _judge_errors, _judge_nvlink, _judge_pcie,
)  # fmt: skip


def _cuda_error() -> str:
    """Why torch cannot use a GPU, in its own words."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except Exception as error:
        return " ".join(str(error).split())[:200]
    return "torch.cuda.is_available() is false"
