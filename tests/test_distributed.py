"""A rank's place on a node with GPUs: one each under NCCL, shared under gloo, or one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import see_gpus
from ranks import in_ranks
from trainings import here

from harness import config as cfg
from harness.distributed import World, from_environment, process_group
from harness.doctor import machine
from harness.errors import BadInput

CPU = torch.device("cpu")


def rank(number: int, of: int) -> dict[str, str]:
    """What torchrun tells a rank of a single node."""
    return {"RANK": f"{number}", "LOCAL_RANK": f"{number}",
            "WORLD_SIZE": f"{of}", "LOCAL_WORLD_SIZE": f"{of}"}  # fmt: skip


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
