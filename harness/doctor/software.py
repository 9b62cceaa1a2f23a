"""Software: do driver, CUDA and libraries fit together, and do all ranks run the same?"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Sequence

import torch

import harness
from harness.data import dali_info
from harness.doctor.check import Asked, Check, Facts, green, not_checked, red, yellow
from harness.monitor.environment import CHECKOUT, git_state, versions
from harness.system import compilers

MUST_AGREE = (
    *("torch", "cuda", "cudnn", "nccl", "torchvision", "dali", "nvimgcodec", "nvjpeg"),
    *("harness", "git_commit"),
)
"""What computes: ranks that differ in it hang in a collective, or train something else."""

SHOULD_AGREE = ("git_dirty", "python", "driver", "numpy", "pillow")
"""What rarely changes a result."""


def look(asked: Asked) -> Facts:
    """Versions of all that computes, of this rank."""
    commit, dirty = git_state(CHECKOUT)
    return {
        "host": socket.gethostname(),
        "rank": asked.world.rank,
        "versions": versions()
        | {"harness": harness.__version__, "git_commit": commit, "git_dirty": dirty},
        "dali": vars(dali_info.installed()),
        "nccl_there": torch.distributed.is_nccl_available(),
        "compiler": _compiler(asked),
    }


def judge(ranks: Sequence[Facts], asked: Asked) -> list[Check]:
    """The check of one node: local rank 0 speaks for it."""
    facts = ranks[0]
    found = facts["versions"]
    driver = f"driver {facts['driver'] or found['driver'] or 'none'}"
    driver += f" (CUDA {facts['driver_cuda']})" if facts["driver_cuda"] else ""
    names = {"torch": "torch", "cuda": "CUDA", "cudnn": "cuDNN", "nccl": "NCCL", "dali": "DALI"}
    parts = [driver, *(f"{word} {found[key] or 'none'}" for key, word in names.items())]
    commit = f" at {found['git_commit'][:7]}" if found["git_commit"] else ""
    changed = ", with changes" if found["git_dirty"] else ""
    value = ", ".join([*parts, f"harness {found['harness']}{commit}{changed}"])
    compiler = judge_compiler(facts["compiler"])
    if wrong := _misfit(facts, asked):
        return [red("versions", f"{wrong[0]} ({value})", wrong[1]), compiler]
    return [green("versions", value), compiler]


def judge_all(ranks: Sequence[Facts], asked: Asked) -> list[Check]:
    """The checks that concern all ranks together."""
    return [_agree(ranks), _world_size(ranks, asked)]


def _compiler(asked: Asked) -> tuple[str, str] | None:
    """What became of trying the compiler, once per node; none where the run needs none."""
    if asked.world.local_rank or not asked.compiles:
        return None
    return compilers.attempt(on_gpu=asked.world.on_gpu)


def judge_compiler(trial: tuple[str, str] | None) -> Check:
    """Red where training would be refused."""
    if trial is None:
        return not_checked("compiler", "this run compiles nothing")
    value, remedy = trial
    if remedy:
        return red("compiler", value, f"{remedy}, or give --engine.compile false")
    return green("compiler", value)


def _misfit(facts: Facts, asked: Asked) -> tuple[str, str] | None:
    """What does not go together, and what to do."""
    found, source = facts["versions"], asked.config.data.source
    needs_gpu = bool(facts["gpus"]) and asked.wants_gpu
    if source == "dali":
        driver = _major(facts["driver_cuda"]) if needs_gpu else None
        if wrong := dali_info.misfit(dali_info.Dali(**facts["dali"]), driver):
            return wrong
    if not needs_gpu:
        return None
    cuda = found["cuda"]
    if cuda is None:
        return "a torch without CUDA, beside GPUs", "install a CUDA build: see pytorch.org"
    supported = _major(facts["driver_cuda"])
    if supported and supported < _major(cuda):
        return (
            f"the driver knows CUDA {facts['driver_cuda']}, torch needs {cuda}",
            f"install a torch built for CUDA {supported}, or a newer driver",
        )
    if facts["cuda_error"]:
        what = f"the driver lists {len(facts['gpus'])} GPUs, torch sees none: {facts['cuda_error']}"
        return what, "look at CUDA_VISIBLE_DEVICES, then at dmesg; or take another node"
    if asked.world.size > 1 and not facts["nccl_there"]:
        return "a torch without NCCL, beside GPUs", "install a CUDA build: see pytorch.org"
    return None


def _agree(ranks: Sequence[Facts]) -> Check:
    if len(ranks) == 1:
        return not_checked("ranks agree", "a single process")
    differ = {
        name: Counter(str(facts["versions"][name]) for facts in ranks)
        for name in (*MUST_AGREE, *SHOULD_AGREE)
    }
    differ = {name: counts for name, counts in differ.items() if len(counts) > 1}
    if not differ:
        return green("ranks agree", f"{len(ranks)} ranks: the same versions and git commit")
    name, counts = next(iter(differ.items()))
    usual = counts.most_common(1)[0][0]
    odd = next(facts for facts in ranks if str(facts["versions"][name]) != usual)
    value = (
        f"{name} is {odd['versions'][name]} on rank {odd['rank']} ({odd['host']}), {usual} on most"
    )
    value += f"; also {', '.join([*differ][1:])}" if len(differ) > 1 else ""
    do = "one environment and one checkout for all nodes, such as on a shared disk"
    return (red if name in MUST_AGREE else yellow)("ranks agree", value, do)


def _world_size(ranks: Sequence[Facts], asked: Asked) -> Check:
    """As many ranks as Slurm gave room for: a node left out shows here, not after an epoch."""
    environ, size = asked.environ, asked.world.size
    if "RANK" not in environ:
        return not_checked("world size", "started alone, without torchrun")
    if "SLURM_JOB_ID" not in environ:
        return not_checked("world size", f"{size}; not under Slurm")
    nodes = _count(environ, "SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES")
    gpus, tasks = _count(environ, "SLURM_GPUS_ON_NODE"), _count(environ, "SLURM_STEP_NUM_TASKS")
    if "TORCHELASTIC_RUN_ID" in environ:
        there = int(environ.get("GROUP_WORLD_SIZE", "1"))
        if nodes and there != nodes:
            what = f"torchrun joined {there} of {nodes} nodes"
            return red("world size", what, "give torchrun --nnodes and one rendezvous for all")
        if asked.wants_gpu and gpus and nodes and size != nodes * gpus:
            what = f"{size} ranks, but Slurm gave {nodes} nodes x {gpus} GPUs"
            return red("world size", what, "give torchrun --nproc-per-node=$SLURM_GPUS_ON_NODE")
        return green("world size", f"{size}: as Slurm gave, {there} nodes")
    if tasks and size != tasks:
        what = f"{size} ranks, but this step has {tasks} tasks"
        return red("world size", what, "start all ranks with one srun")
    return green("world size", f"{size}: as Slurm gave")


def _count(environ: object, *names: str) -> int | None:
    """The first of these variables that holds a number."""
    assert hasattr(environ, "get")
    return next((int(environ.get(n)) for n in names if str(environ.get(n, "")).isdigit()), None)


def _major(version: str | None) -> int:
    return int(version.split(".")[0]) if version else 0
