"""Record what a run ran on: software, hardware, job and environment variables, without secrets."""

import os
import platform
import re
import socket
import subprocess
from pathlib import Path
from typing import Any

import torch

import harness
from harness.data import dali_info

GIB = 2**30
CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGES = ("torchvision", "wandb", "submitit", "numpy", "pillow")
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "bf16", "sve")
"""Instruction sets that decide how fast a CPU trains, as /proc/cpuinfo spells them."""
SLURM_VARIABLES = """
SLURM_CLUSTER_NAME SLURM_JOB_PARTITION SLURM_JOB_ID SLURM_JOB_NAME SLURM_ARRAY_JOB_ID
SLURM_ARRAY_TASK_ID SLURM_RESTART_COUNT SLURM_JOB_NUM_NODES SLURM_JOB_NODELIST SLURM_NTASKS
SLURM_CPUS_PER_TASK SLURM_GPUS_ON_NODE
"""
# Whole names, not prefixes: variables of any name may hold access tokens.
VARIABLES = """
OMP_NUM_THREADS OMP_PROC_BIND OMP_PLACES MKL_NUM_THREADS KMP_AFFINITY KMP_BLOCKTIME LD_PRELOAD
ATEN_CPU_CAPABILITY ONEDNN_MAX_CPU_ISA ONEDNN_DEFAULT_FPMATH_MODE
CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER CUDA_DEVICE_MAX_CONNECTIONS CUDA_LAUNCH_BLOCKING
CUDA_MODULE_LOADING CUBLAS_WORKSPACE_CONFIG NVIDIA_TF32_OVERRIDE
PYTORCH_ALLOC_CONF PYTORCH_CUDA_ALLOC_CONF TORCH_DISTRIBUTED_DEBUG TORCH_LOGS
TORCH_NCCL_ASYNC_ERROR_HANDLING TORCH_NCCL_AVOID_RECORD_STREAMS TORCH_NCCL_BLOCKING_WAIT
TORCH_NCCL_HIGH_PRIORITY TORCH_COMPILE_DISABLE TORCHDYNAMO_DISABLE TORCHINDUCTOR_CACHE_DIR
TORCHINDUCTOR_FX_GRAPH_CACHE TORCHINDUCTOR_MAX_AUTOTUNE TORCHELASTIC_RESTART_COUNT TRITON_CACHE_DIR
NCCL_ALGO NCCL_BUFFSIZE NCCL_CROSS_NIC NCCL_CUMEM_ENABLE NCCL_DEBUG NCCL_IB_DISABLE
NCCL_IB_GID_INDEX NCCL_IB_HCA NCCL_IB_QPS_PER_CONNECTION NCCL_IB_TIMEOUT NCCL_MAX_NCHANNELS
NCCL_MIN_NCHANNELS NCCL_NET NCCL_NET_GDR_LEVEL NCCL_NVLS_ENABLE NCCL_P2P_DISABLE NCCL_P2P_LEVEL
NCCL_PROTO NCCL_SHM_DISABLE NCCL_SOCKET_IFNAME NCCL_TOPO_FILE GLOO_SOCKET_IFNAME
DALI_AFFINITY_MASK WANDB_BASE_URL WANDB_ENTITY WANDB_MODE WANDB_PROJECT
WANDB_NAME WANDB_RUN_GROUP WANDB_JOB_TYPE WANDB_NOTES
"""


def environment(world_size: int, device: torch.device | None = None) -> dict[str, Any]:
    """Return the content of environment.json, by default of the GPU; unknown values are None."""
    commit, dirty = git_state(CHECKOUT)
    return {
        "harness": {"version": harness.__version__, "git_commit": commit, "git_dirty": dirty},
        "versions": versions(),
        "world_size": world_size,
        "hostname": socket.gethostname(),
        "kernel": platform.release(),
        "device": _device(device),
        "cpu": _cpu(),
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB,
        "slurm": _named(SLURM_VARIABLES),
        "variables": _named(VARIABLES),
    }


def host_facts(device: torch.device | None = None) -> dict[str, Any]:
    """Return the facts that may differ between ranks; few, as they are gathered from all ranks."""
    cpu = _cpu()
    return {
        "hostname": socket.gethostname(),
        "device": _device(device)["name"],
        "driver": driver_version(),
        "cpu": cpu["model"],
        "cpu_capability": cpu["capability"],
        "cores_available": cpu["cores_available"],
        "torch": torch.__version__,
    }


def versions() -> dict[str, str | None]:
    """Return the versions of Python, torch, CUDA, DALI and other packages; imports none of them."""
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    has_nccl = torch.distributed.is_available() and torch.distributed.is_nccl_available()
    nccl = torch.cuda.nccl.version() if has_nccl else ()  # type: ignore[no-untyped-call]
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": str(cudnn) if cudnn else None,
        "nccl": ".".join(map(str, nccl)) or None,
        "driver": driver_version(),
        **dali_info.versions(),
        **{package: dali_info.version_of(package) for package in PACKAGES},
    }


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """Return the commit, and whether tracked files differ from it; Nones without a checkout."""
    # By itself git refuses a checkout of another user, as in a container, for what its config may
    # start. Nothing is started here, and the code that lies there runs already.
    safe = ("-c", f"safe.directory={folder}", "-c", "core.fsmonitor=false")
    git = ("git", *safe, "-C", str(folder))
    output = _output(*git, "rev-parse", "--show-toplevel", "HEAD")
    top, commit = output.splitlines() if output else (None, None)
    # An installed copy may lie in the checkout of another project.
    if top is None or Path(top) != folder:
        return None, None
    # Without locks, so that two jobs that start at once do not disturb each other.
    changes = _output(*git, "--no-optional-locks", "status", "--porcelain", "-uno")
    return commit, None if changes is None else bool(changes)


def driver_version() -> str | None:
    """Return the version of the NVIDIA driver, which torch does not report; None without one."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        text = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or ""
    version = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
    return version[0] if version else None


def compiler_version() -> str | None:
    """Return the first line of `--version` of inductor's C++ compiler; None without one."""
    output = _output(os.environ.get("CXX", "g++"), "--version")
    return output.splitlines()[0] if output else None


def cpu_info() -> dict[str, str]:
    """Return /proc/cpuinfo of the last core: in what matters here, all cores are alike."""
    pairs = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _device(device: torch.device | None) -> dict[str, Any]:
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        return {"type": "cpu", "name": _cpu()["model"], "count": None, "memory_gib": None}
    properties = torch.cuda.get_device_properties(device)
    return {
        "type": device.type,
        "name": properties.name,
        "count": torch.cuda.device_count(),
        "memory_gib": properties.total_memory / GIB,
    }


def _cpu() -> dict[str, Any]:
    facts = cpu_info()
    flags = facts.get("flags", facts.get("Features", "")).split()
    return {
        "model": facts.get("model name", platform.machine()),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "flags": [flag for flag in CPU_FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "cores_available": len(os.sched_getaffinity(0)),
    }


def _named(names: str) -> dict[str, str]:
    return {name: os.environ[name] for name in names.split() if name in os.environ}


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return os.fsdecode(done.stdout) if done.returncode == 0 else None
