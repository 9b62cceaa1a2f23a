"""Compute: how many CPU cores a rank has, and how fast it computes on its device."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from harness.config import CIFAR_MODELS
from harness.doctor import limits
from harness.doctor.check import Asked, Check, Facts, green, span, yellow
from harness.models import build
from harness.monitor import probes
from harness.monitor.peaks import training_bound
from harness.system.cores import cpu_quota
from harness.trainer.resolve import resolve_precision

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def look(asked: Asked) -> Facts:
    """Cores that this rank may run on, how fast it multiplies matrices, and what follows."""
    return _cores(asked) | _compute(asked)


def _cores(asked: Asked) -> Facts:
    return {
        "cores": sorted(os.sched_getaffinity(0)),
        "cores_quota": cpu_quota(),
        "cores_of_rank": asked.cores,
        "local_ranks": asked.local_ranks,
    }


def _compute(asked: Asked) -> Facts:
    config, device = asked.config, asked.world.device
    # Alone before a run, this process stands for all ranks of its node.
    several = device.type == "cuda" and asked.world.size == 1
    devices = [torch.device("cuda", n) for n in range(torch.cuda.device_count())]
    torch.set_num_threads(asked.threads)
    wanted = config.engine.precision
    if wanted in ("tf32", "fp16") and not asked.world.on_gpu:
        wanted = "fp32"  # the GPU that it was asked for is missing: another check says so
    precision = resolve_precision(wanted, on_gpu=asked.world.on_gpu)
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    dtype = _DTYPES.get(precision, torch.float32)
    flops = [
        probes.matmul_flops(each, dtype, limit_s=limits.COMPUTE_S)
        for each in (devices if several else [device])
    ]
    with torch.device("meta"):
        network = build(config.model, 10 if config.model.name in CIFAR_MODELS else 1000)
    return {
        "matmul_tflops": [each / 1e12 for each in flops],
        "precision": precision,
        "images_per_second_bound": training_bound(config, device.type, sum(flops)),
        "checkpoint_mb": 2 * 4 * sum(p.numel() for p in network.parameters()) / 1e6,
        "bucket_bytes": probes.bucket_bytes(network.parameters(), config.engine.bucket_mb),
    }


def judge(ranks: Sequence[Facts], asked: Asked) -> list[Check]:
    """The checks of one node, from the facts of its ranks; the first is local rank 0."""
    return [judge_cores(ranks, asked), _judge_compute(ranks, asked)]


def judge_cores(ranks: Sequence[Facts], asked: Asked) -> Check:
    """Whether the rank with the fewest cores has enough."""
    cores = set().union(*(facts["cores"] for facts in ranks))
    quotas = [facts["cores_quota"] for facts in ranks if facts["cores_quota"] is not None]
    per_rank = min(facts["cores_of_rank"] for facts in ranks)
    need = limits.CORES_PER_GPU if asked.world.on_gpu else limits.CORES_PER_CPU_RANK
    value = f"{per_rank:.3g} per rank ({len(cores)} cores"
    value += f", of which the control group grants {min(quotas):.3g})" if quotas else ")"
    if per_rank < need:
        how = f"at least {need} per rank: raise sbatch --cpus-per-task, or start fewer ranks"
        return yellow("CPU cores", value, how)
    return green("CPU cores", value)


def _judge_compute(ranks: Sequence[Facts], asked: Asked) -> Check:
    rates = [rate for facts in ranks for rate in facts["matmul_tflops"]]
    bound = sum(facts["images_per_second_bound"] for facts in ranks)
    what = "GPU" if asked.world.on_gpu else "rank"
    value = (
        f"{span(rates, '.3g')} TFLOP/s in {ranks[0]['precision']} per {what}: at most "
        f"{bound:,.0f} images/s of {asked.config.model.name} on this node"
    )
    middle = sorted(rates)[len(rates) // 2]
    slow = [n for n, rate in enumerate(rates) if rate < limits.SLOW_GPU * middle]
    # On a CPU the ranks share caches and clocks, and whatever else runs takes its part.
    if slow and asked.world.on_gpu:
        what = f"{value}; slow: GPU {', '.join(map(str, slow))}"
        return yellow("matrix product", what, "all wait for it: see clocks and throttling")
    return green("matrix product", value)
