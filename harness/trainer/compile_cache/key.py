"""Key: on which machines compiled graphs are right, and which graphs they are.

Inductor's own keys tell graphs apart, but not CPUs: code made for another vector width loads, runs
and gives NaN without an error. What `graphs` leaves out makes nothing wrong; a run then compiles
what it lacks.
"""

import hashlib
import json
import os
import platform
import sys
from importlib.metadata import distributions
from typing import Any

import torch

from harness.distributed import World
from harness.monitor.environment import compiler_version, cpu_info
from harness.trainer.resolve import Resolved

_CPU_IDENTITY = (
    *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"),
)
"""As /proc/cpuinfo spells them on x86 and on Arm: inductor compiles with -march=native."""

_FIRST_WEIGHTS = {"weights", "fc_init_std", "zero_gamma"}


def facts(resolved: Resolved, classes: int) -> dict[str, Any]:
    """All that compiled graphs depend on, besides the harness's own code."""
    return {"machine": machine(resolved.world), "graphs": graphs(resolved, classes)}


def key_of(facts: dict[str, Any]) -> str:
    """Hash of the facts: 16 hex digits."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def machine(world: World) -> dict[str, Any]:
    """What decides whether machine code is right here."""
    cpu, device = cpu_info(), world.device
    set_by_user = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("TORCHINDUCTOR_") and name != "TORCHINDUCTOR_CACHE_DIR"
    }
    return {
        "torch": torch.__version__,
        "torch_git": torch.version.git_version,
        "python": f"{sys.implementation.cache_tag} {platform.python_version()}",
        "libc": " ".join(platform.libc_ver()),
        "compiler": compiler_version(),
        "cpu": {name: cpu[name] for name in _CPU_IDENTITY if name in cpu},
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "triton": next((found.version for found in distributions(name="triton")), None),
        "gpu": [torch.cuda.get_device_name(device), *torch.cuda.get_device_capability(device)]
        if world.on_gpu
        else None,
        "inductor": key_of(set_by_user),  # a hash: the values stay unsaid
    }


def graphs(resolved: Resolved, classes: int) -> dict[str, Any]:
    """What shapes the graphs."""
    config = resolved.config
    return {
        "model": config.model.model_dump(mode="json", exclude=_FIRST_WEIGHTS),
        "classes": classes,
        "mode": config.run.mode,
        "image_px": config.data.image_px,
        "local_batch": resolved.split.local_batch,
        "eval_local_batch": resolved.eval_images * resolved.eval_views,
        "pixels": [config.data.mean_image, config.data.augment, config.data.pad_px],
        "coloured": config.data.colour_std > 0,
        "precision": resolved.precision,
        "channels_last": config.engine.channels_last,
        "deterministic": config.engine.deterministic,
        "compile_mode": config.engine.compile_mode,
        "compile_ddp": config.engine.compile_ddp,
        "coordinate_descent": config.engine.coordinate_descent,
        "pad_stem": config.engine.pad_stem,
        # Dynamo cuts the graph of a module under DDP where a bucket ends.
        "bucket_mb": config.engine.bucket_mb if resolved.under_ddp else None,
        "threads": resolved.threads,
        # Each GPU of a node has graphs of its own in the same folder.
        "ranks_per_node": resolved.world.local_size,
    }
