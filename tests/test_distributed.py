"""A rank's place on a node with GPUs: one each under NCCL, shared under gloo, or one line."""

from __future__ import annotations

import re
import socket
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import see_gpus
from ranks import in_ranks
from trainings import here

from harness import config as cfg
from harness.distributed import World, from_environment, identity, process_group
from harness.doctor import machine
from harness.errors import BadInput, BadRank, RunFailed

CPU = torch.device("cpu")


def rank(number: int, of: int) -> dict[str, str]:
    """What torchrun tells a rank of a single node."""
    return {"RANK": f"{number}", "LOCAL_RANK": f"{number}",
            "WORLD_SIZE": f"{of}", "LOCAL_WORLD_SIZE": f"{of}",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}  # fmt: skip


def without(*names: str) -> dict[str, str]:
    """What a launcher tells rank 1 of 2, less these."""
    return {name: text for name, text in rank(1, 2).items() if name not in names}


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        (rank(1, 2) | {"RANK": "a"}, "RANK: expected a number below 65,536, got a; start one"),
        (rank(1, 2) | {"RANK": "-1"}, "RANK: expected a number below 65,536, got -1"),
        (rank(1, 2) | {"WORLD_SIZE": "2.0"}, "WORLD_SIZE: expected a number below 65,536"),
        (rank(1, 2) | {"MASTER_PORT": "70000"}, "MASTER_PORT: expected a number below 65,536"),
        (rank(2, 2), "RANK 2, LOCAL_RANK 2, WORLD_SIZE 2, LOCAL_WORLD_SIZE 2: cannot be"),
        (rank(1, 2) | {"LOCAL_RANK": "2"}, "RANK 1, LOCAL_RANK 2, WORLD_SIZE 2, LOCAL"),
        (rank(1, 2) | {"LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE 3: cannot be"),
        (rank(0, 0), "RANK 0, LOCAL_RANK 0, WORLD_SIZE 0, LOCAL_WORLD_SIZE 0: cannot be"),
        (without("MASTER_ADDR"), "MASTER_ADDR is not set while RANK is: start one torchrun"),
        (rank(1, 2) | {"MASTER_ADDR": ""}, "MASTER_ADDR is not set while RANK is"),
        (without("MASTER_PORT"), "MASTER_PORT is not set while RANK is"),
        (without("RANK"), "RANK is not set while LOCAL_RANK is"),
        # Kubernetes' PyTorchJob, for one process per node.
        (without("LOCAL_RANK", "LOCAL_WORLD_SIZE"), "LOCAL_RANK is not set while RANK is"),
        # Each would be a world of one, all in the same folder.
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE is 2, "),
        ({"PMI_RANK": "1", "PMI_SIZE": "4"}, "PMI_SIZE is 4, but RANK is not set: start one"),
        ({"SLURM_STEP_NUM_TASKS": "8"}, "SLURM_STEP_NUM_TASKS is 8, but RANK is not set"),
    ],
)
def test_what_a_launcher_cannot_mean_is_refused(environ: dict[str, str], says: str) -> None:
    with pytest.raises(BadInput) as refused:
        from_environment("cpu", environ)
    assert says in str(refused.value)
    # Another rank does not see a wrong number, so each rank says its own.
    assert isinstance(refused.value, BadRank) == ("is not set" not in str(refused.value))
    if "SLURM_STEP_NUM_TASKS" not in environ:
        with pytest.raises(BadInput):  # the doctor foresees it
            machine.plan_run(cfg.Config(), None, environ)


def test_what_launchers_mean_is_read() -> None:
    assert identity(rank(1, 2)) == (1, 1, 2, 2)
    alone = {"OMPI_COMM_WORLD_SIZE": "1", "PMI_SIZE": "1", "SLURM_STEP_NUM_TASKS": "1"}
    assert identity({}) == identity(alone) == (0, 0, 1, 1)
    one = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    assert identity(one) == (0, 0, 1, 1)
    assert identity(rank(1, 2) | alone | {"OMPI_COMM_WORLD_SIZE": "2"}) == (1, 1, 2, 2)


@pytest.mark.parametrize(
    ("number", "kind", "says"),
    [
        (0, BadInput, "the port is taken; give another to all ranks"),
        (1, RunFailed, "all ranks must reach rank 0 there, and each have its own RANK"),
    ],
)
def test_ranks_that_cannot_meet_say_where(
    monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception], says: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        if number == 0:
            taken.listen()
        port = taken.getsockname()[1]
        for name, text in (rank(number, 2) | {"MASTER_PORT": str(port)}).items():
            monkeypatch.setenv(name, text)
        with pytest.raises(kind) as refused, process_group(World(number, number, 2, 2, CPU), 1):
            pass
    said = str(refused.value)
    assert said.startswith(f"MASTER_ADDR 127.0.0.1, MASTER_PORT {port}: ")
    assert said.endswith(says)
    assert "\n" not in said


@pytest.mark.parametrize("backend", ["auto", "nccl"])
def test_more_ranks_than_gpus_are_refused_by_each(
    monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """By those that would have one as well: they would wait for the others."""
    see_gpus(monkeypatch, 2)
    for number in range(3):
        with pytest.raises(BadInput) as refused:
            from_environment("auto", rank(number, 3), backend)
        said = str(refused.value)
        assert said.startswith("engine.backend: nccl needs a GPU for each of the 3 ranks")
        assert "torch sees 2; lower --nproc-per-node" in said
        assert "--engine.backend gloo" in said
        assert "\n" not in said


def test_under_gloo_ranks_share_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpus(monkeypatch, 2)
    worlds = [from_environment("auto", rank(number, 3), "gloo") for number in range(3)]
    assert [str(world.device) for world in worlds] == ["cuda:0", "cuda:1", "cuda:0"]
    assert {(world.backend, world.shares_gpu) for world in worlds} == {("gloo", True)}


def test_auto_is_nccl_on_gpus_and_gloo_on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert from_environment("cpu", rank(1, 2)) == World(1, 1, 2, 2, CPU, "gloo")
    see_gpus(monkeypatch, 2)
    there = torch.device("cuda", 1)
    assert from_environment("auto", rank(1, 2)) == World(1, 1, 2, 2, there, "nccl")
    assert from_environment("cpu", rank(1, 2)).backend == "gloo"
    with pytest.raises(BadInput, match=r"engine\.backend: nccl needs GPUs; use gloo, or auto"):
        from_environment("cpu", {}, "nccl")


@pytest.mark.parametrize(("backend", "gpus"), [("auto", 3), ("gloo", 1)])
def test_the_doctor_expects_a_gpu_per_rank_or_one_for_all(
    monkeypatch: pytest.MonkeyPatch, backend: Any, gpus: int
) -> None:
    see_gpus(monkeypatch, 1)
    config = cfg.Config(engine=cfg.Engine(backend=backend))
    run = machine.plan_run(config, None, rank(2, 3))
    assert (run.gpus, str(run.world.device)) == (gpus, "cuda:0")


@pytest.mark.parametrize("backend", ["nccl", "gloo"])
def test_the_group_is_of_the_worlds_backend(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """NCCL is given its device at once; gloo must not be, as its tensors may be in host memory."""
    begun: list[dict[str, Any]] = []
    monkeypatch.setattr(dist, "init_process_group", lambda **given: begun.append(given))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    there = torch.device("cuda", 0)
    with process_group(World(0, 0, 1, 1, there, backend), 60):
        assert begun[0]["backend"] == backend
        assert begun[0]["device_id"] == (there if backend == "nccl" else None)


def _without_interface() -> str:
    with pytest.raises(BadInput) as refused, process_group(World(0, 0, 1, 1, CPU), 5):
        pass
    return str(refused.value)


def test_an_interface_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth77")
    (said,) = in_ranks(1, _without_interface)
    assert re.fullmatch(
        r"gloo's network interface: Unable to find .*eth77.*; bring it up, .*", said
    )
    assert "GLOO_SOCKET_IFNAME" in said


def collectives() -> tuple[str, list[Any]]:
    """What the harness does over the ranks, on this rank's device."""
    world = here()
    with process_group(world, 60):
        mine = torch.full((3,), world.rank + 1.0, dtype=torch.float64, device=world.device)
        (given,) = [torch.ones(2, 3, 2, 2, device=world.device) * world.rank]
        given = given.to(memory_format=torch.channels_last)
        world.broadcast_([given])
        found = [
            world.sum_(mine.clone()).tolist(),
            world.sum_(mine.bfloat16()).tolist(),
            world.sum_(mine.long()).tolist(),
            world.gather_tensor(mine).tolist(),
            float(given.abs().sum()),
            world.from_main(f"rank {world.rank}"),
            world.gather(world.rank),
        ]
    return f"{world.device} {world.backend}", found


@pytest.mark.gpu
def test_every_collective_works_on_the_device_of_three_ranks(device: torch.device) -> None:
    ranks = in_ranks(3, collectives)
    assert all(name.startswith(device.type) and name.endswith(" gloo") for name, _ in ranks)
    ones, twos = [6.0] * 3, [[1.0] * 3, [2.0] * 3, [3.0] * 3]
    for _, found in ranks:
        assert found == [ones, ones, [6] * 3, twos, 0.0, "rank 0", [0, 1, 2]]
