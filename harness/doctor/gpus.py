"""Check that all GPUs are present, healthy, and as fast as they can be.

A fact that the driver, the GPU or pynvml does not support is None.
"""

from collections.abc import Sequence
from typing import Any

import torch

from harness.doctor import limits
from harness.doctor.check import Check, Facts, PlannedRun, span
from harness.errors import one_line
from harness.monitor.environment import GIB
from harness.monitor.gpus import HARMLESS, SLOWED, SM_CLOCK, WITHOUT_RESERVED, Nvml, call, gpu_uuid
from harness.system.deadline import NoAnswer, within

Gpus = list[dict[str, Any]]
_MOST_LINKS = 36  # NVML_NVLINK_MAX_LINKS; NVML refuses the numbers that a GPU does not have
_UNCORRECTED_NOW = (1, 0)  # NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC
_NOTHING: Facts = {"driver_error": None, "driver": None, "driver_cuda": None, "gpus": []}


def collect(run: PlannedRun) -> Facts:
    """Return NVML's and torch's view of the node's GPUs, and this rank's GPU before its use."""
    facts: Facts = {"gpus_expected": run.gpus, "torch_gpus": torch.cuda.device_count()}
    facts["own_gpu"] = _own_gpu(run.world.device)
    if run.world.local_rank:
        return facts
    facts |= {"cuda_error": None} | inventory(limits.NVML_S)
    gpus = facts["gpus"]
    if gpus and run.wants_gpu and not torch.cuda.is_available():
        facts["cuda_error"] = "torch.cuda.is_available() is false"
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except Exception as error:  # says why
            facts["cuda_error"] = one_line(error)[:200]
    elif run.world.on_gpu:
        # On a shared node NVML may also list the GPUs of other jobs.
        uuids = {gpu_uuid(torch.device("cuda", n)) for n in range(torch.cuda.device_count())}
        facts["gpus"] = [gpu for gpu in gpus if gpu["uuid"] in uuids] or gpus
    return facts


def judge(ranks: Sequence[Facts], run: PlannedRun) -> list[Check]:
    """Return the checks of one node from its ranks' facts, local rank 0 first."""
    first, expected = ranks[0], ranks[0]["gpus_expected"]
    # Each GPU as its own rank read it before it used the GPU: waking the driver can delay local
    # rank 0 until other ranks have begun to multiply matrices.
    own = {facts["own_gpu"]["uuid"]: facts["own_gpu"] for facts in ranks if facts["own_gpu"]}
    gpus = [gpu | own.get(gpu["uuid"], {}) for gpu in first["gpus"]]
    if not run.wants_gpu:
        return [Check("GPUs", "not checked", "engine.device is cpu")]
    if first["driver_error"] is not None and expected:
        value = f"the NVIDIA driver fails: {first['driver_error']}"
        do = "take another node; on this one the driver must be reloaded"
        return [Check("GPUs", "red", value, do)]
    # If CUDA fails to start, only the check of the versions is red.
    usable = len(gpus) if first["cuda_error"] else first["torch_gpus"]
    if usable < expected:
        value = f"{usable} of {expected} expected"
        return [Check("GPUs", "red", value, _how_to_get_gpus(first, run))]
    if not usable:
        reason = f" ({first['driver_error']})" if first["driver_error"] else ""
        return [Check("GPUs", "not checked", f"none{reason}; this run would compute on the CPU")]
    if not gpus:
        value = f"{usable}; NVML is not installed, so nothing more is known"
        return [Check("GPUs", "green", value)]
    judges = (_judge_model, _judge_clocks, _judge_slowed, _judge_errors, _judge_nvlink, _judge_pcie)
    return [judge_one(gpus) for judge_one in judges]


def inventory(limit_s: float) -> Facts:
    """Return the driver and all its GPUs, also those of other jobs; nothing if NVML is missing.

    `driver_cuda` is the newest CUDA that the driver supports; `driver_error` is what NVML reports,
    or that it does not answer within `limit_s` seconds.
    """
    try:
        # The forked process initializes NVML itself: NVML does not survive a fork.
        return within(limit_s, _inventory)
    except NoAnswer as error:
        return _NOTHING | {"driver_error": str(error)}


def _inventory() -> Facts:
    import pynvml

    try:
        pynvml.nvmlInit()
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        gpus = [gpu_facts(Nvml(handle=handle)) for handle in handles]
    except pynvml.NVMLError_LibraryNotFound:
        return _NOTHING
    except pynvml.NVMLError as error:
        return _NOTHING | {"driver_error": str(error)}
    cuda = call("nvmlSystemGetCudaDriverVersion_v2")
    return _NOTHING | {
        "driver": call("nvmlSystemGetDriverVersion"),
        "driver_cuda": None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
        "gpus": gpus,
    }


def gpu_facts(gpu: Nvml) -> dict[str, Any]:
    """Return the state of one GPU."""
    memory = gpu.read("nvmlDeviceGetMemoryInfo", WITHOUT_RESERVED)
    cap = gpu.read("nvmlDeviceGetEnforcedPowerLimit")  # the lowest of all limits that apply
    if cap is None:
        cap = gpu.read("nvmlDeviceGetPowerManagementLimit")
    default_cap = gpu.read("nvmlDeviceGetPowerManagementDefaultLimit")
    ecc, mig = gpu.read("nvmlDeviceGetCurrentEccMode"), gpu.read("nvmlDeviceGetMigMode")
    pages = gpu.read("nvmlDeviceGetRetiredPagesPendingStatus")
    rows = gpu.read("nvmlDeviceGetRemappedRows")  # corrected, uncorrected, pending, failed
    states = [gpu.read("nvmlDeviceGetNvLinkState", link) for link in range(_MOST_LINKS)]
    links = [state for state in states if state is not None]
    return {
        "name": gpu.read("nvmlDeviceGetName") or "unnamed GPU",
        "uuid": gpu.read("nvmlDeviceGetUUID") or "",
        "mig": bool(mig and mig[0]),
        "memory_gib": None if memory is None else memory.total / GIB,
        "memory_used_gib": gpu.memory_used_gib(),
        "clock_mhz": gpu.read("nvmlDeviceGetClockInfo", SM_CLOCK),
        "max_clock_mhz": gpu.read("nvmlDeviceGetMaxClockInfo", SM_CLOCK),
        "power_cap_w": None if cap is None else cap / 1000,
        "default_power_cap_w": None if default_cap is None else default_cap / 1000,
        "slowed": gpu.slowed() or (),  # keys of `monitor.gpus.SLOWED`
        "ecc": None if ecc is None else bool(ecc),
        # Since the driver was loaded.
        "uncorrected_errors": gpu.read("nvmlDeviceGetTotalEccErrors", *_UNCORRECTED_NOW),
        # Rows or pages of memory wait for a reset to be replaced, or cannot be.
        "repair_pending": bool(pages or (rows and any(rows[2:]))),
        "pcie_width": gpu.read("nvmlDeviceGetCurrPcieLinkWidth"),
        "max_pcie_width": gpu.read("nvmlDeviceGetMaxPcieLinkWidth"),
        "max_pcie_generation": gpu.read("nvmlDeviceGetMaxPcieLinkGeneration"),
        # If no link is up, the GPU could have an NVLink bridge but has none.
        "nvlinks": len(links) if any(links) else None,
        "nvlinks_active": sum(links) if any(links) else None,
    }


def _own_gpu(device: torch.device) -> Facts:
    if device.type != "cuda":
        return {}
    gpu, uuid = Nvml(device), gpu_uuid(device)
    state = {"uuid": uuid, "memory_used_gib": gpu.memory_used_gib(), "slowed": gpu.slowed()}
    return {name: value for name, value in state.items() if value is not None}


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


def _which(bad: Sequence[Any]) -> str:
    """Return the numbers of the GPUs whose value is true, as nvidia-smi counts them."""
    return "GPU " + ", ".join(str(number) for number, value in enumerate(bad) if value)


def _judge_model(gpus: Gpus) -> Check:
    names, memory = sorted({gpu["name"] for gpu in gpus}), _known(gpus, "memory_gib")
    size = f", {span(memory, '.0f')} GiB each" if memory else ""
    value = f"{len(gpus)} x {' and '.join(names)}{size}"
    if len(names) > 1:
        do = "all GPUs wait for the slowest model: use nodes with one model"
        return Check("GPUs", "yellow", value, do)
    if any(gpu["mig"] for gpu in gpus):
        do = "results would be those of a slice: switch MIG off"
        return Check("GPUs", "yellow", f"{value}, cut by MIG", do)
    used = [gpu["memory_used_gib"] or 0.0 for gpu in gpus]
    if any(busy := [gib > limits.MEMORY_USED_GIB for gib in used]):
        what = f"{value}; {_which(busy)}: {max(used):.1f} GiB in use"
        return Check("GPUs", "yellow", what, "another process uses it: see nvidia-smi")
    return Check("GPUs", "green", value)


def _judge_clocks(gpus: Gpus) -> Check:
    now, highest = _known(gpus, "clock_mhz"), _known(gpus, "max_clock_mhz")
    cap, default = _known(gpus, "power_cap_w"), _known(gpus, "default_power_cap_w")
    parts = [f"{span(now)} MHz now"] if now else []
    parts += [f"at most {span(highest)} MHz"] if highest else []
    parts += [f"power cap {span(cap)} W of {span(default)} W"] if cap and default else []
    name, value = "GPU clocks, power", ", ".join(parts)
    if not parts:
        return Check(name, "not checked", "the driver does not report them")
    capped = [
        (gpu["power_cap_w"] or 1e9) < limits.POWER_CAP * (gpu["default_power_cap_w"] or 0.0)
        for gpu in gpus
    ]
    if any(capped):
        what = f"{value} ({_which(capped)})"
        return Check(name, "yellow", what, "report the cap with results, or nvidia-smi -pl")
    return Check(name, "green", value)


def _judge_slowed(gpus: Gpus) -> Check:
    name = "GPU throttling"
    which = {
        reason: slowed
        for reason in SLOWED
        if reason not in HARMLESS and any(slowed := [reason in gpu["slowed"] for gpu in gpus])
    }
    if not which:
        return Check(name, "green", "none right now")
    value = "; ".join(f"{_which(slowed)}: {SLOWED[reason]}" for reason, slowed in which.items())
    if any(reason.startswith("hw_") for reason in which):
        do = "the cooling or the power supply is faulty: take another node"
        return Check(name, "red", value, do)
    return Check(name, "yellow", value, "wait before you measure, or take another node")


def _judge_errors(gpus: Gpus) -> Check:
    name, errors = "GPU memory errors", [gpu["uncorrected_errors"] for gpu in gpus]
    if any(errors):
        total = sum(number or 0 for number in errors)
        what = f"{total} uncorrected since the driver was loaded ({_which(errors)})"
        return Check(name, "red", what, "take another node; this GPU needs a reset")
    if any(pending := [gpu["repair_pending"] for gpu in gpus]):
        what = f"{_which(pending)}: memory repair is pending or has failed"
        return Check(name, "yellow", what, "have the GPU reset before a long run")
    ecc = {True: "on", False: "off", None: "not supported"}
    state = " and ".join(sorted({ecc[gpu["ecc"]] for gpu in gpus}))
    counted = any(number is not None for number in errors)
    return Check(name, "green", f"{'none' if counted else 'not counted'}; ECC is {state}")


def _judge_nvlink(gpus: Gpus) -> Check:
    active = _known(gpus, "nvlinks_active")
    if not active:
        return Check("NVLink", "not checked", "the driver lists no links: GPUs talk over PCIe")
    value = f"{span(active)} links up of {span(_known(gpus, 'nvlinks'))} per GPU"
    if any(fewer := [(gpu["nvlinks_active"] or 0) < max(active) for gpu in gpus]):
        what = f"{value}; fewer: {_which(fewer)}"
        return Check("NVLink", "yellow", what, "a link is down: take another node")
    return Check("NVLink", "green", value)


def _judge_pcie(gpus: Gpus) -> Check:
    width, widest = _known(gpus, "pcie_width"), _known(gpus, "max_pcie_width")
    if not width or not widest:
        return Check("PCIe", "not checked", "the driver does not report it")
    generation = _known(gpus, "max_pcie_generation")
    value = f"x{span(width, '.0f')} of x{span(widest, '.0f')}"
    value += f", generation {span(generation, '.0f')}" if generation else ""
    if any(narrow := [(gpu["pcie_width"] or 0) < (gpu["max_pcie_width"] or 0) for gpu in gpus]):
        do = "images arrive slower: the card is badly seated, or its slot is narrow"
        return Check("PCIe", "yellow", f"{value} ({_which(narrow)})", do)
    return Check("PCIe", "green", value)
