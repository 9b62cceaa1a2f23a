"""The engine's switches: what each changes, to the bit, and that the warm-up covers it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY, train
from ranks import in_ranks
from trainings import alone, bits, fresh, here, make_config, make_resolved

from harness import cli, engine
from harness import config as cfg
from harness.bench import switches
from harness.errors import BadInput
from harness.resolve import resolve
from harness.train import evaluate, train_step
from harness.world import from_environment, process_group


def after_steps(photos: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Five steps, then a validation: bits, some weights, graphs."""
    world = here()
    config = make_config(photos, **changes)
    resolved, train_set, val_set = make_resolved(config, world)
    with process_group(world, 60):
        t = fresh(resolved)
        warm = engine.graph_counts()
        batches = resolved.loader.train(train_set, resolved.split, epoch=0, step=0, epochs=1)
        for _ in range(5):
            train_step(t, batches)
        val_batches = resolved.loader.eval(val_set, resolved.eval_images)
        evaluate(t.model, val_batches, len(val_set), resolved, t.pulse)
        weights = torch.cat([p.detach().flatten() for p in t.model.parameters()])
        told = {"bits": bits(t), "warm": warm, "graphs": engine.graph_counts()}
        return told | {"weights": weights[::500].tolist(), "keys": list(t.model.net.state_dict())}


def engine_changes(**changes: Any) -> dict[str, Any]:
    return {"engine": {"precision": "fp32", **changes}}


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Largest difference of a weight."""
    return float((torch.tensor(one["weights"]) - torch.tensor(other["weights"])).abs().max())


@pytest.mark.gpu_too
@pytest.mark.slow
def test_which_switch_changes_which_bits(photos: Path, device: torch.device) -> None:
    """Three ranks, since a sum of two commutes."""
    plain, no_view, unfused, rounded = (
        in_ranks(3, after_steps, photos, engine_changes(**changes))
        for changes in (
            {},
            {"bucket_view": False},
            {"fused_optimizer": False},
            {"send_gradients": "bf16"},
        )
    )
    for ranks in (plain, no_view, unfused, rounded):
        assert len({rank["bits"] for rank in ranks}) == 1, "weights agree between ranks"
    assert no_view[0]["bits"] == plain[0]["bits"]
    if device.type == "cpu":  # on a GPU, one kernel may round as several do
        assert unfused[0]["bits"] != plain[0]["bits"]
    assert distance(unfused[0], plain[0]) < 1e-5
    assert 1e-6 < distance(rounded[0], plain[0]) < 1e-2


@pytest.mark.gpu_too
def test_bf16_gradients_are_rounded_once_where_there_is_nothing_to_sum(photos: Path) -> None:
    found = []
    for sent in ("fp32", "bf16"):
        with alone(make_config(photos, **engine_changes(send_gradients=sent))) as (t, *_):
            engine._throw_away(t.ddp, t.resolved)
            found.append([p.grad for p in t.model.parameters()])
    for whole, rounded in zip(*found, strict=True):
        assert torch.equal(whole.bfloat16().float(), rounded)
        assert rounded.dtype == torch.float32


def test_cuda_graphs_without_a_gpu_are_refused(photos: Path) -> None:
    config = make_config(photos, engine={"device": "auto", "compile_mode": "reduce-overhead"})
    with pytest.raises(BadInput, match=r"engine\.compile_mode: reduce-overhead means CUDA graphs"):
        resolve(config, from_environment("cpu", {}), None)


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize(
    "asked",
    ["", "--engine.compile", "--engine.compile false", "--engine.compile --engine.compile-ddp",
     "--engine.fused-optimizer false --engine.send-gradients bf16 --engine.bucket-view false",
     "--engine.compile-mode max-autotune", "--engine.bucket-mb 0.5"],
)  # fmt: skip
def test_what_a_sweep_tries_can_be_asked_for(asked: str, on_gpu: bool) -> None:
    words = ["--data.source", "dali", *asked.split()]
    config = cli.load(words, prog="x")
    compiled = on_gpu if config.engine.compile == "auto" else config.engine.compile
    came_to = {"engine.compile": cli.as_text(compiled), "train.max_local_batch": "16",
               "data.decode": "gpu" if on_gpu else "cpu"}  # fmt: skip
    facts = {"on_gpu": on_gpu, "cores": 4, "came_to": came_to}
    found = switches.candidates(config, 2, facts)
    for key, values in found.items():
        for value in values:
            flag = f"--{key.replace('_', '-')}"
            tried = cli.load([*words, flag, value], prog="x")
            assert cfg.differing(config, tried, "speed"), f"{key} {value} changes nothing"
    assert {"engine.fused_optimizer", "engine.bucket_view", "engine.send_gradients"} <= set(found)
    assert ({"engine.compile_mode", "engine.compile_ddp"} <= set(found)) is compiled
    assert found.get("data.decode") == (["cpu", "split"] if on_gpu else None)
    assert found.get("data.hw_decoder_load") == (["0.0", "0.9", "1.0"] if on_gpu else None)


@pytest.mark.gpu_too
@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {
            "engine.compile-ddp": "true",
            "train.max-local-batch": "3",
            "engine.send-gradients": "bf16",
        },
        {
            "engine.compile-mode": "max-autotune-no-cudagraphs",
            "engine.fused-optimizer": "false",
            "engine.static-graph": "true",
            "engine.bucket-view": "false",
        },
    ],
    ids=["compiled DDP, accumulating", "max-autotune, static graph"],
)
def test_nothing_compiles_after_the_warm_up(
    tmp_path: Path, photos: Path, changes: dict[str, str]
) -> None:
    flags = {
        "engine.compile": "true", "engine.bucket-mb": "1", "run.name": "run",  # two buckets
        "data.train": str(photos), "data.val": str(photos), "train.global-batch": "12",
        "eval.local-batch": "7", "log.every-steps": "3",
    } | changes  # fmt: skip
    words = [word for key, value in flags.items() for word in (f"--{key}", value)]
    done = train(*TINY, *words, ranks=2, cwd=tmp_path, timeout_s=600)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "runs" / "run" / "result.json").read_text())
    assert (result["compiled"], result["recompiles"], result["graph_breaks"]) == (True, 0, 0)
    assert result["val_images"] == 101
    weights = torch.load(tmp_path / "runs" / "run" / "checkpoints" / "final.pt")["model"]
    assert not [key for key in weights if "_orig_mod" in key or key.startswith("module.")]
