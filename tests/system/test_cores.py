"""How many of the node's cores a rank takes for its threads, for every way of starting it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from harness.config import Config
from harness.distributed import World
from harness.doctor import compute
from harness.doctor.check import PlannedRun
from harness.system import process
from launch import numa

TORCHRUN = {"RANK": "0", "TORCHELASTIC_RUN_ID": "1"}


def granted(cpus: int) -> dict[str, str]:
    return {"SLURM_CPUS_ON_NODE": str(cpus)}


class Case(NamedTuple):
    """What a rank sees of its node, and how many cores it must take."""

    ranks: int
    own: int
    parent: int
    want: float
    environ: dict[str, str] = {}  # noqa: RUF012
    quota: float | None = None


CASES = {
    "alone": Case(1, 128, 128, want=128),
    "alone, bound by taskset": Case(1, 16, 128, want=16),
    "alone, its parent bound to fewer": Case(1, 16, 2, want=16),
    "torchrun": Case(8, 128, 128, want=16, environ=TORCHRUN),
    "torchrun, more ranks than cores": Case(3, 2, 2, want=2 / 3, environ=TORCHRUN),
    "torchrun within taskset": Case(8, 16, 16, want=2, environ=TORCHRUN),
    "torchrun with part of the node, enforced": Case(
        4, 32, 32, want=8, environ=TORCHRUN | granted(32)
    ),
    "torchrun with part of the node, not enforced": Case(
        4, 128, 128, want=8, environ=TORCHRUN | granted(32)
    ),
    "numa-binding: four of eight ranks share a socket": Case(
        8, 64, 128, want=16, environ=TORCHRUN | granted(128)
    ),
    "numa-binding exclusive": Case(8, 16, 128, want=16, environ=TORCHRUN),
    "torchrun has ended": Case(8, 128, 0, want=16, environ=TORCHRUN),
    "srun, a task per GPU with its cores": Case(8, 8, 128, want=8, environ=granted(64)),
    "srun without cpus-per-task": Case(8, 1, 128, want=1, environ=granted(8)),
    "srun, two threads of each core": Case(8, 2, 128, want=2, environ=granted(16)),
    "srun from a slurmd that is bound elsewhere": Case(8, 8, 2, want=8, environ=granted(64)),
    "srun --cpu-bind=none": Case(8, 64, 64, want=8, environ=granted(64)),
    "a quota": Case(8, 128, 128, want=2, environ=TORCHRUN, quota=16),
    "a quota of less than a core": Case(1, 128, 128, want=0.5, quota=0.5),
    "a quota that never binds": Case(8, 16, 16, want=2, environ=TORCHRUN, quota=64),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Case:
    case: Case = request.param
    seen = {0: case.own, os.getppid(): case.parent}

    def affinity(process: int) -> set[int]:
        if not seen[process]:
            raise ProcessLookupError
        return set(range(seen[process]))

    monkeypatch.setattr(os, "sched_getaffinity", affinity)
    monkeypatch.setattr(process, "cpu_quota", lambda: case.quota)
    for name in (*TORCHRUN, *granted(0)):
        monkeypatch.delenv(name, raising=False)
    for name, value in case.environ.items():
        monkeypatch.setenv(name, value)
    return case


def test_a_rank_takes_its_own_cores_or_its_part_of_the_nodes(case: Case) -> None:
    assert process.core_share(case.ranks) == pytest.approx(case.want)
    world = World(0, 0, case.ranks, case.ranks, torch.device("cpu"))
    assert world.cores() == max(1, int(case.want))


def test_the_doctor_judges_what_the_run_will_take(case: Case) -> None:
    world = World(0, 0, case.ranks, case.ranks, torch.device("cpu"))
    run = PlannedRun(Config(), world, 0, case.environ)
    assert run.loader_threads == world.cores()
    facts = {"cores": [0], "cores_quota": case.quota, "cores_of_rank": run.cores}
    check = compute.judge_cores([facts, facts | {"cores_of_rank": 999}], run)
    assert check.value.startswith(f"{case.want:.3g} per rank")
    assert check.status == ("green" if case.want >= 1 else "yellow")


def test_quotas_of_both_kinds_of_control_group(tmp_path: Path) -> None:
    member_of = tmp_path / "cgroup"
    job = tmp_path / "fs" / "slurm" / "job1"
    job.mkdir(parents=True)
    member_of.write_text("0::/slurm/job1\n")
    assert process.cpu_quota(member_of, tmp_path / "fs") is None
    (job / "cpu.max").write_text("max 100000\n")
    assert process.cpu_quota(member_of, tmp_path / "fs") is None
    (job.parent / "cpu.max").write_text("250000 100000\n")
    assert process.cpu_quota(member_of, tmp_path / "fs") == 2.5
    (job / "cpu.max").write_text("150000 100000\n")
    assert process.cpu_quota(member_of, tmp_path / "fs") == 1.5

    member_of.write_text("7:cpuset:/x\n4:cpu,cpuacct:/docker/1\n0::/\n")
    old = tmp_path / "v1" / "cpu" / "docker" / "1"
    old.mkdir(parents=True)
    (old / "cpu.cfs_period_us").write_text("100000\n")
    (old / "cpu.cfs_quota_us").write_text("-1\n")
    assert process.cpu_quota(member_of, tmp_path / "v1") is None
    (old / "cpu.cfs_quota_us").write_text("400000\n")
    assert process.cpu_quota(member_of, tmp_path / "v1") == 4
    assert process.cpu_quota(tmp_path / "none") is None


def node(root: Path, number: int, cpus: Iterable[int], gpus: int) -> None:
    """A NUMA node as Linux shows it."""
    (folder := root / f"devices/system/node/node{number}").mkdir(parents=True)
    for name in ("cpulist", "cpumap", *(f"cpu{core}" for core in cpus)):
        (folder / name).touch()
    for gpu in range(gpus):
        (folder := root / f"bus/pci/drivers/nvidia/0000:{number}{gpu}:00.0").mkdir(parents=True)
        (folder / "numa_node").write_text(f"{number}\n")


EVEN, ODD, LOW, HIGH = range(0, 16, 2), range(1, 16, 2), range(8), range(8, 16)


@pytest.mark.parametrize(
    ("nodes", "ranks", "allowed", "binds"),
    [
        ([(EVEN, 4), (ODD, 4)], 8, 16, True),
        ([(EVEN, 4), (ODD, 4), ((), 0)], 8, 16, True),  # the third: memory alone
        ([(range(16), 8)], 8, 16, False),
        ([(LOW, 8), (HIGH, 0)], 8, 16, False),  # half of the cores would lie idle
        ([(LOW, 6), (HIGH, 2)], 8, 16, False),  # six ranks would have less than two
        ([(LOW, 4), (HIGH, 4)], 4, 16, False),  # the four may all be on one of them
        ([(LOW, 4), (HIGH, 4)], 8, 8, False),  # Slurm gave the cores of one of them
        ([(LOW, 0), (HIGH, 0)], 8, 16, False),
        ([(range(16), 0)], 2, 16, False),
    ],
)
def test_ranks_are_bound_only_where_each_keeps_its_part_of_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    nodes: list[tuple[Iterable[int], int]], ranks: int, allowed: int, binds: bool,
) -> None:  # fmt: skip
    for number, (cpus, gpus) in enumerate(nodes):
        node(tmp_path, number, cpus, gpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)))
    monkeypatch.setattr(numa.shutil, "which", lambda _: "/usr/bin/numactl")
    assert numa.option(ranks, tmp_path) == ("--numa-binding=node" if binds else "")
    monkeypatch.setattr(numa.shutil, "which", lambda _: None)
    assert numa.option(ranks, tmp_path) == "", "torchrun would fail"
