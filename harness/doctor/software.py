"""Check that driver, CUDA and libraries fit together, and that all ranks run the same versions."""

import socket
from collections import Counter
from collections.abc import Sequence

import torch

import harness
from harness.config.rules import compiles
from harness.data import dali_info
from harness.doctor.check import Check, Facts, PlannedRun, number_in
from harness.monitor.environment import CHECKOUT, git_state, versions
from harness.system import compilers

MUST_AGREE = (
    *("torch", "cuda", "cudnn", "nccl", "torchvision", "dali", "nvimgcodec", "nvjpeg"),
    *("harness", "git_commit"),
)
"""Versions that must be equal: ranks that differ hang in a collective or train another model."""

SHOULD_AGREE = ("git_dirty", "python", "driver", "numpy", "pillow")  # rarely change a result


def collect(run: PlannedRun) -> Facts:
    """Return this rank's versions, and whether NCCL and a compiler work."""
    (commit, dirty), on_gpu = git_state(CHECKOUT), run.world.on_gpu
    ours = {"harness": harness.__version__, "git_commit": commit, "git_dirty": dirty}
    tries = compiles(run.config.engine, on_gpu=on_gpu) and run.world.local_rank == 0
    return {
        "host": socket.gethostname(),
        "rank": run.world.rank,
        "versions": versions() | ours,
        "dali": vars(dali_info.installed()),
        "nccl_available": torch.distributed.is_nccl_available(),
        "compiler": compilers.attempt(on_gpu=on_gpu) if tries else None,
    }


def judge(ranks: Sequence[Facts], run: PlannedRun) -> list[Check]:
    """Return the checks of one node from the facts of its local rank 0."""
    facts = ranks[0]
    versions = facts["versions"]
    driver = f"driver {facts['driver'] or versions['driver'] or 'none'}"
    driver += f" (CUDA {facts['driver_cuda']})" if facts["driver_cuda"] else ""
    names = {"torch": "torch", "cuda": "CUDA", "cudnn": "cuDNN", "nccl": "NCCL", "dali": "DALI"}
    parts = [driver, *(f"{label} {versions[key] or 'none'}" for key, label in names.items())]
    commit = f" at {versions['git_commit'][:7]}" if versions["git_commit"] else ""
    changed = ", with changes" if versions["git_dirty"] else ""
    value = ", ".join([*parts, f"harness {versions['harness']}{commit}{changed}"])
    compiler = judge_compiler(facts["compiler"])
    if misfit := _misfit(facts, run):
        return [Check("versions", "red", f"{misfit[0]} ({value})", misfit[1]), compiler]
    return [Check("versions", "green", value), compiler]


def judge_all(ranks: Sequence[Facts], run: PlannedRun) -> list[Check]:
    """Return the checks that concern all ranks together."""
    return [_agree(ranks), _world_size(ranks, run)]


def judge_compiler(trial: tuple[str, str] | None) -> Check:
    """Return the check of the compiler: red if training would refuse to start."""
    if trial is None:
        return Check("compiler", "not checked", "this run compiles nothing")
    value, remedy = trial
    if remedy:
        return Check("compiler", "red", value, f"{remedy}, or give --engine.compile false")
    return Check("compiler", "green", value)


def _misfit(facts: Facts, run: PlannedRun) -> tuple[str, str] | None:
    """Return which versions do not fit together and what to do, or None."""
    versions, source = facts["versions"], run.config.data.source
    needs_gpu = bool(facts["gpus"]) and run.wants_gpu
    driver = _major(facts["driver_cuda"]) if needs_gpu else None
    if source == "dali" and (found := dali_info.misfit(dali_info.Dali(**facts["dali"]), driver)):
        return found
    if not needs_gpu:
        return None
    cuda, supported = versions["cuda"], _major(facts["driver_cuda"])
    do = "install a CUDA build: see pytorch.org"
    if cuda is None:
        return "torch is built without CUDA, but the node has GPUs", do
    if supported and supported < _major(cuda):
        value = f"the driver supports CUDA {facts['driver_cuda']}, torch needs {cuda}"
        return value, f"install a torch built for CUDA {supported}, or a newer driver"
    if error := facts["cuda_error"]:
        value = f"the driver lists {len(facts['gpus'])} GPUs, torch sees none: {error}"
        return value, "look at CUDA_VISIBLE_DEVICES, then at dmesg; or take another node"
    if run.world.size > 1 and not facts["nccl_available"]:
        return "torch is built without NCCL, but the node has GPUs", do
    return None


def _agree(ranks: Sequence[Facts]) -> Check:
    label = "ranks agree"
    if len(ranks) == 1:
        return Check(label, "not checked", "a single process")
    differ = {
        name: Counter(str(facts["versions"][name]) for facts in ranks)
        for name in (*MUST_AGREE, *SHOULD_AGREE)
    }
    differ = {name: counts for name, counts in differ.items() if len(counts) > 1}
    if not differ:
        return Check(label, "green", f"{len(ranks)} ranks: the same versions and git commit")
    name, counts = next(iter(differ.items()))
    usual = counts.most_common(1)[0][0]
    outlier = next(facts for facts in ranks if str(facts["versions"][name]) != usual)
    where = f"rank {outlier['rank']} ({outlier['host']})"
    value = f"{name} is {outlier['versions'][name]} on {where}, {usual} on most"
    value += f"; also {', '.join([*differ][1:])}" if len(differ) > 1 else ""
    do = "use one environment and one checkout for all nodes, such as on a shared disk"
    return Check(label, "red" if name in MUST_AGREE else "yellow", value, do)


def _world_size(ranks: Sequence[Facts], run: PlannedRun) -> Check:
    """Check that there are as many ranks as Slurm granted GPUs or tasks: no node is left out."""
    name, environ, size = "world size", run.environ, run.world.size
    if "RANK" not in environ:
        return Check(name, "not checked", "started alone, without torchrun")
    if "SLURM_JOB_ID" not in environ:
        return Check(name, "not checked", f"{size}; not under Slurm")
    nodes = number_in(environ, "SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES")
    gpus = number_in(environ, "SLURM_GPUS_ON_NODE")
    tasks = number_in(environ, "SLURM_STEP_NUM_TASKS")
    if "TORCHELASTIC_RUN_ID" in environ:
        joined = int(environ.get("GROUP_WORLD_SIZE", "1"))
        if nodes and joined != nodes:
            value = f"torchrun joined {joined} of {nodes} nodes"
            return Check(name, "red", value, "give torchrun --nnodes and one rendezvous for all")
        if run.wants_gpu and gpus and nodes and size != nodes * gpus:
            value = f"{size} ranks, but Slurm gave {nodes} nodes x {gpus} GPUs"
            return Check(name, "red", value, "give torchrun --nproc-per-node=$SLURM_GPUS_ON_NODE")
        return Check(name, "green", f"{size}: as Slurm gave, {joined} nodes")
    if tasks and size != tasks:
        value = f"{size} ranks, but this step has {tasks} tasks"
        return Check(name, "red", value, "start all ranks with one srun")
    return Check(name, "green", f"{size}: as Slurm gave")


def _major(version: str | None) -> int:
    return int(version.split(".")[0]) if version else 0
