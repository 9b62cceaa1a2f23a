"""Check that all GPUs are present, healthy, and as fast as they can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from harness.doctor import limits
from harness.doctor.check import Check, Facts, PlannedRun, green, not_checked, red, span, yellow
from harness.doctor.inventory import DriverError, inventory
from harness.monitor.gpus import HARMLESS, SLOWED, Nvml, gpu_uuid

Gpus = list[dict[str, Any]]


def collect(run: PlannedRun) -> Facts:
    """Return NVML's and torch's view of the node's GPUs, and this rank's GPU before its use."""
    facts: Facts = {"gpus_expected": run.gpus, "torch_gpus": torch.cuda.device_count()}
    facts["own_gpu"] = _own_gpu(run.world.device)
    if run.world.local_rank:
        return facts
    facts |= {"gpus": []}
    facts |= dict.fromkeys(("driver_error", "driver", "driver_cuda", "cuda_error"))
    try:
        driver = inventory(limits.NVML_S)
    except DriverError as error:
        return facts | {"driver_error": str(error)}
    if driver is None:
        return facts
    gpus = [asdict(gpu) for gpu in driver.gpus]
    facts |= {"driver": driver.version, "driver_cuda": driver.cuda, "gpus": gpus}
    if gpus and run.wants_gpu and not torch.cuda.is_available():
        facts["cuda_error"] = _cuda_error()
    elif run.world.on_gpu:
        # On a shared node NVML may also list the GPUs of other jobs.
        uuids = {f"GPU-{torch.cuda.get_device_properties(n).uuid}"
                 for n in range(torch.cuda.device_count())}  # fmt: skip
        facts["gpus"] = [gpu for gpu in gpus if gpu["uuid"] in uuids] or gpus
    return facts


def judge(ranks: Sequence[Facts], run: PlannedRun) -> list[Check]:
    """Return the checks of one node from its ranks' facts, local rank 0 first."""
    first = ranks[0]
    first = first | {"gpus": _before_use(first["gpus"], ranks)}
    gpus, visible, expected = first["gpus"], first["torch_gpus"], first["gpus_expected"]
    if not run.wants_gpu:
        return [not_checked("GPUs", "engine.device is cpu")]
    if first["driver_error"] is not None and expected:
        value = f"the NVIDIA driver fails: {first['driver_error']}"
        return [red("GPUs", value, "take another node; on this one the driver must be reloaded")]
    # If CUDA fails to start, only the check of the versions is red.
    usable = len(gpus) if first["cuda_error"] else visible
    if usable < expected:
        return [red("GPUs", f"{usable} of {expected} expected", _how_to_get_gpus(first, run))]
    if not usable:
        reason = f" ({first['driver_error']})" if first["driver_error"] else ""
        return [not_checked("GPUs", f"none{reason}; this run would compute on the CPU")]
    if not gpus:
        return [green("GPUs", f"{usable}; NVML is not installed, so nothing more is known")]
    return [judge_one(gpus) for judge_one in _GPU_JUDGES]


def _own_gpu(device: torch.device) -> Facts:
    """Return the state of this rank's GPU; other GPUs may already be in use by their ranks."""
    if device.type != "cuda":
        return {}
    gpu = Nvml(device)
    state = {"memory_used_gib": gpu.memory_used_gib(), "slowed": gpu.slowed()}
    known = {name: value for name, value in state.items() if value is not None}
    return {"uuid": gpu_uuid(device)} | known


def _before_use(gpus: Gpus, ranks: Sequence[Facts]) -> Gpus:
    """Return NVML's GPUs, each in the state that its own rank read before it used the GPU.

    Waking the driver can delay local rank 0 until other ranks have begun to multiply matrices.
    """
    own = {facts["own_gpu"]["uuid"]: facts["own_gpu"] for facts in ranks if facts["own_gpu"]}
    return [gpu | own.get(gpu["uuid"], {}) for gpu in gpus]


def _how_to_get_gpus(facts: Facts, run: PlannedRun) -> str:
    listed, mask = len(facts["gpus"]), run.environ.get("CUDA_VISIBLE_DEVICES")
    if mask is not None and listed > facts["torch_gpus"]:
        return f"CUDA_VISIBLE_DEVICES={mask} hides some of {listed}: unset it, or start fewer ranks"
    if not listed and facts["driver_error"] is None and facts["driver"] is None:
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
    """Return the numbers of the GPUs for which `bad` is true, as nvidia-smi counts them."""
    return "GPU " + ", ".join(str(number) for number, gpu in enumerate(gpus) if bad(gpu))


def _judge_models(gpus: Gpus) -> Check:
    names = sorted({gpu["name"] for gpu in gpus})
    memory = _known(gpus, "memory_gib")
    size = f", {span(memory, '.0f')} GiB each" if memory else ""
    value = f"{len(gpus)} x {' and '.join(names)}{size}"
    if len(names) > 1:
        return yellow(
            "GPUs", value, "all GPUs wait for the slowest model: use nodes with one model"
        )
    if any(gpu["mig"] for gpu in gpus):
        return yellow(
            "GPUs", f"{value}, cut by MIG", "results would be those of a slice: switch MIG off"
        )
    used = _known(gpus, "memory_used_gib")
    if used and max(used) > limits.MEMORY_USED_GIB:
        which = _numbers(gpus, lambda gpu: (gpu["memory_used_gib"] or 0) > limits.MEMORY_USED_GIB)
        what = f"{value}; {which}: {max(used):.1f} GiB in use"
        return yellow("GPUs", what, "another process uses it: see nvidia-smi")
    return green("GPUs", value)


def _judge_clocks(gpus: Gpus) -> Check:
    now, highest = _known(gpus, "clock_mhz"), _known(gpus, "max_clock_mhz")
    cap, default = _known(gpus, "power_cap_w"), _known(gpus, "default_power_cap_w")
    parts = [f"{span(now)} MHz now"] if now else []
    parts += [f"at most {span(highest)} MHz"] if highest else []
    parts += [f"power cap {span(cap)} W of {span(default)} W"] if cap and default else []
    value = ", ".join(parts) or "the driver does not report them"

    def capped(gpu: dict[str, Any]) -> bool:
        cap, default = gpu["power_cap_w"], gpu["default_power_cap_w"]
        return bool(cap and default and cap < limits.POWER_CAP * default)

    if any(map(capped, gpus)):
        value = f"{value} ({_numbers(gpus, capped)})"
        return yellow("GPU clocks, power", value, "report the cap with results, or nvidia-smi -pl")
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
            "GPU throttling", value, "the cooling or the power supply is faulty: take another node"
        )
    return yellow("GPU throttling", value, "wait before you measure, or take another node")


def _judge_errors(gpus: Gpus) -> Check:
    errors = _known(gpus, "uncorrected_errors")
    ecc = {True: "on", False: "off", None: "not supported"}
    state = " and ".join(sorted({ecc[gpu["ecc"]] for gpu in gpus}))
    if sum(errors):
        which = _numbers(gpus, lambda gpu: bool(gpu["uncorrected_errors"]))
        what = f"{int(sum(errors))} uncorrected since the driver was loaded ({which})"
        return red("GPU memory errors", what, "take another node; this GPU needs a reset")
    if any(gpu["repair_pending"] for gpu in gpus):
        which = _numbers(gpus, lambda gpu: bool(gpu["repair_pending"]))
        what = f"{which}: memory repair is pending or has failed"
        return yellow("GPU memory errors", what, "have the GPU reset before a long run")
    return green("GPU memory errors", f"{'none' if errors else 'not counted'}; ECC is {state}")


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
    width, widest = _known(gpus, "pcie_width"), _known(gpus, "max_pcie_width")
    if not width or not widest:
        return not_checked("PCIe", "the driver does not report it")
    generation = _known(gpus, "max_pcie_generation")
    value = f"x{span(width, '.0f')} of x{span(widest, '.0f')}"
    value += f", generation {span(generation, '.0f')}" if generation else ""

    def narrow(gpu: dict[str, Any]) -> bool:
        return bool((gpu["pcie_width"] or 0) < (gpu["max_pcie_width"] or 0))

    if any(map(narrow, gpus)):
        what = f"{value} ({_numbers(gpus, narrow)})"
        return yellow(
            "PCIe", what, "images arrive slower: the card is badly seated, or its slot is narrow"
        )
    return green("PCIe", value)


_GPU_JUDGES = (
    _judge_models, _judge_clocks, _judge_slowed, _judge_errors, _judge_nvlink, _judge_pcie,
)  # fmt: skip


def _cuda_error() -> str:
    """Return torch's message on why it cannot use a GPU."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except Exception as error:
        return " ".join(str(error).split())[:200]
    return "torch.cuda.is_available() is false"
