"""Check how many CPU cores a rank has, and how fast its device multiplies matrices."""

import os
from collections.abc import Sequence

import torch

from harness.doctor import limits
from harness.doctor.check import Check, Facts, PlannedRun, span
from harness.models import build
from harness.models.zoo import MODELS
from harness.monitor import probes
from harness.monitor.peaks import training_bound
from harness.system.process import cpu_quota
from harness.trainer.resolve import resolve_precision


def collect(run: PlannedRun) -> Facts:
    """Return this rank's cores, its matrix product rate, and the model's bounds and sizes."""
    config, device = run.config, run.world.device
    devices = [device]
    if device.type == "cuda" and run.world.size == 1:
        # A single process that runs before the ranks measures the GPUs of all of them.
        devices = [torch.device("cuda", n) for n in range(torch.cuda.device_count())]
    torch.set_num_threads(config.engine.threads or run.world.cores())
    configured = config.engine.precision
    if configured in ("tf32", "fp16") and not run.world.on_gpu:
        configured = "fp32"  # the GPU that the config needs is missing: check "GPUs" reports it
    precision = resolve_precision(configured, on_gpu=run.world.on_gpu)
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    flops = [probes.matmul_flops(each, dtype, limit_s=limits.COMPUTE_S) for each in devices]
    with torch.device("meta"):
        network = build(config.model, MODELS[config.model.name].classes)
    return {
        "cores": sorted(os.sched_getaffinity(0)),
        "cores_quota": cpu_quota(),
        "cores_of_rank": run.cores,
        "local_ranks": run.local_ranks,
        "matmul_tflops": [rate / 1e12 for rate in flops],
        "precision": precision,
        "images_per_second_bound": training_bound(config, device.type, sum(flops)),
        "checkpoint_mb": 2 * 4 * sum(p.numel() for p in network.parameters()) / 1e6,
        "bucket_bytes": probes.bucket_bytes(network.parameters(), config.engine.bucket_mb),
    }


def judge(ranks: Sequence[Facts], run: PlannedRun) -> list[Check]:
    """Return the checks of one node from its ranks' facts, local rank 0 first."""
    return [judge_cores(ranks, run), _judge_compute(ranks, run)]


def judge_cores(ranks: Sequence[Facts], run: PlannedRun) -> Check:
    """Return the check that the rank with the fewest cores has enough."""
    cores = set().union(*(facts["cores"] for facts in ranks))
    quotas = [facts["cores_quota"] for facts in ranks if facts["cores_quota"] is not None]
    per_rank = min(facts["cores_of_rank"] for facts in ranks)
    need = limits.CORES_PER_GPU if run.world.on_gpu else limits.CORES_PER_CPU_RANK
    value = f"{per_rank:.3g} per rank ({len(cores)} cores"
    value += f", of which the control group grants {min(quotas):.3g})" if quotas else ")"
    if per_rank < need:
        do = f"give at least {need} per rank: raise sbatch --cpus-per-task, or start fewer ranks"
        return Check("CPU cores", "yellow", value, do)
    return Check("CPU cores", "green", value)


def _judge_compute(ranks: Sequence[Facts], run: PlannedRun) -> Check:
    rates = [rate for facts in ranks for rate in facts["matmul_tflops"]]
    bound = sum(facts["images_per_second_bound"] for facts in ranks)
    device = "GPU" if run.world.on_gpu else "rank"
    value = (
        f"{span(rates, '.3g')} TFLOP/s in {ranks[0]['precision']} per {device}: at most "
        f"{bound:,.0f} images/s of {run.config.model.name} on this node"
    )
    median = sorted(rates)[len(rates) // 2]
    slow = [n for n, rate in enumerate(rates) if rate < limits.SLOW_GPU * median]
    # On a CPU, rates vary: ranks share caches and clocks with each other and with other processes.
    if slow and run.world.on_gpu:
        value += f"; slow: GPU {', '.join(map(str, slow))}"
        do = "all GPUs wait for it: see the checks of clocks and throttling"
        return Check("matrix product", "yellow", value, do)
    return Check("matrix product", "green", value)
