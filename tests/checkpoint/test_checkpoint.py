"""Checkpoints as files: whole or not there, never a damaged one, and what a full disk does."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import FORKED, in_ranks
from torch import nn
from torch.utils._pytree import tree_leaves
from trainings import here

from harness import config as cfg
from harness.checkpoint import store
from harness.checkpoint.saver import Saver, Staging, capture, restore
from harness.checkpoint.store import State, newest, publish
from harness.distributed import process_group


def state_of(step: int, size: int = 1000) -> State:
    generator = torch.Generator().manual_seed(step)
    weights = {"w": torch.randn(size, generator=generator)}
    return {"model": weights, "losses": torch.ones(2, 3, dtype=torch.float64), "step": step}


def about(step: int, epochs_done: int | None = None) -> dict[str, Any]:
    return {"step": step, "epochs_done": epochs_done}


def steps_in(folder: Path) -> list[int]:
    return [int(path.stem.removeprefix("step-")) for path in sorted(folder.glob("step-*.pt"))]


def test_what_is_published_is_found(tmp_path: Path) -> None:
    for step in (5, 10, 200):
        publish(tmp_path, state_of(step), about(step))
    found = newest(tmp_path, pytest.fail)
    assert found is not None
    assert found.path.name == "step-000000200.pt"
    assert torch.equal(found.state["model"]["w"], state_of(200)["model"]["w"])
    assert newest(tmp_path / "nowhere", pytest.fail) is None


def test_a_step_may_be_published_again(tmp_path: Path) -> None:
    publish(tmp_path, state_of(5), about(5))
    publish(tmp_path, state_of(5, size=7), about(5))
    found = newest(tmp_path, pytest.fail)
    assert found is not None
    assert len(found.state["model"]["w"]) == 7


@pytest.mark.parametrize("how", ["flip", "cut"])
@pytest.mark.parametrize("suffix", [".pt", ".json"])
def test_damage_is_never_loaded_always_named(tmp_path: Path, how: str, suffix: str) -> None:
    """50 random places for each kind: 200 in all."""
    rng = random.Random(f"{how}{suffix}")
    publish(tmp_path, state_of(5), about(5))
    for _ in range(50):
        hit = publish(tmp_path, state_of(9), about(9)).with_suffix(suffix)
        content = bytearray(hit.read_bytes())
        place = rng.randrange(len(content))
        if how == "flip":
            content[place] ^= 1 << rng.randrange(8)
        else:
            del content[place:]
        hit.write_bytes(content)
        said: list[str] = []
        found = newest(tmp_path, said.append)
        assert found is not None
        assert found.state["step"] == 5
        assert len(said) == 1
        assert said[0].startswith(f"{tmp_path}/step-000000009.pt: ")
    assert len(list((tmp_path / store.ASIDE).glob("*.pt"))) == 50
    assert steps_in(tmp_path) == [5]


def test_a_state_without_manifest_was_never_complete(tmp_path: Path) -> None:
    publish(tmp_path, state_of(5), about(5))
    publish(tmp_path, state_of(9), about(9)).with_suffix(".json").unlink()
    (tmp_path / ".step-000000011.pt.part").write_bytes(b"half")
    said: list[str] = []
    found = newest(tmp_path, said.append)
    assert found is not None
    assert found.state["step"] == 5
    assert "has no manifest" in said[0]
    assert not list(tmp_path.glob(".*.part"))


def write_on(folder: Path) -> None:
    """Publish checkpoint after checkpoint, until it is killed."""
    for step in itertools.count(1):
        state = {"model": {"w": torch.full((300_000,), float(step))}, "step": step}
        publish(folder, state, {"step": step, "epochs_done": None})
        for old in sorted(folder.glob("step-*"))[:-8]:
            old.unlink()


@pytest.mark.slow
def test_killed_at_any_moment_there_is_always_a_whole_one(tmp_path: Path) -> None:
    rng = random.Random(0)
    for _ in range(5):
        writer = FORKED.Process(target=write_on, args=(tmp_path,))
        writer.start()
        while not any(tmp_path.glob("step-*.json")):
            pass
        threading.Event().wait(rng.random() * 0.3)
        writer.kill()
        writer.join()
        said: list[str] = []
        found = newest(tmp_path, said.append)
        assert found is not None
        assert set(found.state["model"]["w"].tolist()) == {float(found.state["step"])}
        assert all("has no manifest" in line for line in said)


@pytest.mark.parametrize(
    ("keep", "every", "left"), [(1, 0, [70]), (2, 0, [65, 70]), (1, 2, [20, 40, 60, 70])]
)
def test_the_newest_are_kept_and_one_of_every_so_many_epochs(
    tmp_path: Path, keep: int, every: int, left: list[int]
) -> None:
    for step in range(5, 75, 5):
        whole = step % 10 == 0
        publish(tmp_path, state_of(step, 3), about(step, step // 10 if whole else None))
        store.prune(tmp_path, keep, every)
    assert steps_in(tmp_path) == left
    assert len(list(tmp_path.iterdir())) == 2 * len(left)


@pytest.mark.gpu_too
def test_staging_copies_once_and_keeps_the_layout(device: torch.device) -> None:
    staging = Staging()
    image = torch.randn(2, 3, 4, 5, device=device).to(memory_format=torch.channels_last)
    value = {"a": [image, torch.arange(3)], "n": 7, "t": (torch.ones(()),)}
    first = staging.copy(value)
    assert torch.equal(first["a"][0], image.cpu())
    assert first["a"][0].stride() == image.stride()
    image.zero_()
    assert first["a"][0].abs().sum() > 0, "a copy"
    again = staging.copy(value)
    assert again["a"][0].data_ptr() == first["a"][0].data_ptr(), "the same memory"
    assert again["n"] == 7


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "momentum": lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
    "Adam": lambda net: torch.optim.AdamW(net.parameters(), lr=0.1, amsgrad=True),
    "lazy": lambda net: torch.optim.SGD(net.parameters(), lr=0.1),
}


def small_net(seed: int, device: torch.device) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    return net.to(device, memory_format=torch.channels_last)


def resume_from_rank_0(kind: str) -> list[Any]:
    """Weights and optimizer state of this rank, after rank 0 alone had taken two steps."""
    world, state = here(), None
    scaler = torch.amp.GradScaler(world.device.type, enabled=False)
    with process_group(world, 60):
        if world.is_main:
            net = small_net(0, world.device)
            optimizer = OPTIMIZERS[kind](net)
            for _ in range(2):
                net(torch.randn(5, 3, 8, 8, device=world.device)).square().sum().backward()
                optimizer.step()
            for number, parameter in enumerate(net.parameters()):
                optimizer.state[parameter]["trust"] = 0.5 + number  # as LARS may keep it
            state = capture(net, optimizer, scaler, Staging())
        net = small_net(1 + world.rank, world.device)
        optimizer = OPTIMIZERS[kind](net)
        restore(state, net, optimizer, world)
    taken = capture(net, optimizer, scaler, Staging())
    values = [*taken["model"].values(), taken["optimizer"]["state"]]
    return [x.numpy() if isinstance(x, torch.Tensor) else x for x in tree_leaves(values)]


@pytest.mark.gpu_too
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_rank_gets_all_of_any_optimizers_state(kind: str) -> None:
    """Tensors and numbers, also those that an optimizer only makes in its first step."""
    first, *others = in_ranks(3, resume_from_rank_0, kind)
    assert len(first) == 7 + 4 * {"momentum": 2, "Adam": 5, "lazy": 1}[kind]
    assert {0.5, 1.5, 2.5, 3.5} <= {x for x in first if isinstance(x, float)}
    for other in others:
        np.testing.assert_equal(other, first)


@pytest.fixture
def say() -> list[str]:
    return []


def make_saver(
    folder: Path,
    say: list[str],
    before: Callable[[], object] = lambda: None,
    after: Callable[[State], object] = lambda state: None,
) -> Saver:
    return Saver(folder, cfg.Checkpoint(), before=before, after=after, say=say.append)


@pytest.mark.parametrize("where", ["losses", "model"])
@pytest.mark.parametrize("what", [float("nan"), float("inf")])
def test_what_is_not_finite_is_never_published(
    tmp_path: Path, say: list[str], where: str, what: float
) -> None:
    saver = make_saver(tmp_path, say)
    saver.save(state_of(5), about(5))
    saver.wait()
    bad = state_of(9)
    (bad["losses"] if where == "losses" else bad["model"]["w"]).view(-1)[-1] = what
    saver.save(bad, about(9))
    saver.wait()
    assert steps_in(tmp_path) == [5]
    assert saver.last == tmp_path / "step-000000005.pt"
    assert say == ["step 9: not saved, as losses or weights are not finite"]


def test_saving_goes_on_in_the_background(tmp_path: Path, say: list[str]) -> None:
    may_write, published = threading.Event(), []
    saver = make_saver(tmp_path, say, before=may_write.wait, after=published.append)
    saver.save(state_of(5), about(5))
    assert saver.busy
    assert not published
    threading.Timer(0.05, may_write.set).start()
    saver.wait()
    assert not saver.busy
    assert [each["step"] for each in published] == [5]


def test_time_makes_it_due_once(
    tmp_path: Path, say: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    saver = make_saver(tmp_path, say)
    assert not saver.due()
    now += 60 * cfg.Checkpoint().every_minutes + 1
    assert saver.due()
    assert not saver.due(), "asking begins a new period"


def test_a_full_disk_costs_that_checkpoint_only(disk: Path, say: list[str]) -> None:
    saver = make_saver(disk, say)
    saver.save(state_of(5, size=200_000), about(5))  # 0.8 MB
    saver.wait()
    saver.save(state_of(9, size=400_000), about(9))  # 1.6 MB: no room
    saver.wait()
    assert "step 9: the checkpoint could not be written (No space left on device)" in say[0]
    assert "training goes on, the last good one is" in say[0]
    assert not list(disk.glob(".*.part")), "what was begun is removed"
    found = newest(disk, say.append)
    assert found is not None
    assert found.state["step"] == 5
    saver.save(state_of(10, size=1000), about(10))
    saver.wait()
    assert steps_in(disk) == [5, 10]
    assert len(say) == 1, "no other failed"


def test_final_weights_are_whole_or_not_there(disk: Path) -> None:
    weights = {"model": {"w": torch.zeros(1_000_000)}}
    with pytest.raises(OSError, match="No space left"):
        store.save_atomic(weights, disk / "final.pt")
    assert not list(disk.iterdir())
