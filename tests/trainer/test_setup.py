"""The engine's switches: what each changes, to the bit, and that the warm-up covers it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_net
import torch
from helpers import TINY, on_gpu
from ranks import in_ranks, python
from trainings import alone, bits, fresh, here, make_config, make_resolved

from harness import config as cfg
from harness.bench.sweep import switches
from harness.config import load
from harness.data.sets import Images
from harness.distributed import World, from_environment, process_group
from harness.errors import BadInput
from harness.models.pad_stem import _PaddedStem
from harness.trainer import setup as engine
from harness.trainer.loop import Training, evaluate, train_step
from harness.trainer.resolve import Resolved, resolve


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
        evaluate(t.model, val_batches, len(val_set), resolved, t.control)
        weights = torch.cat([p.detach().flatten() for p in t.model.parameters()])
        graphs = {"warm": warm, "graphs": engine.graph_counts()}
        state = {"weights": weights[::500].tolist(), "keys": list(t.model.net.state_dict())}
        return {"bits": bits(t)} | graphs | state


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
            engine._throw_away(t.model, t.ddp, t.resolved)
            found.append([p.grad for p in t.model.parameters()])
    for whole, rounded in zip(*found, strict=True):
        assert torch.equal(whole.bfloat16().float(), rounded)
        assert rounded.dtype == torch.float32


CPU = from_environment("cpu", {})
GPU = replace(CPU, device=torch.device("cuda", 0))


@pytest.mark.parametrize(
    ("asked", "world", "message"),
    [
        ({"compile": True, "compile_mode": "reduce-overhead"}, CPU,
         "engine.compile_mode: reduce-overhead means CUDA graphs, which only a GPU has; use defa"),
        ({"compile": True, "compile_mode": "max-autotune"}, CPU,
         "engine.compile_mode: max-autotune means CUDA graphs, which only a GPU has; use "
         "max-autotune-no-cudagraphs"),
        ({"compile_mode": "max-autotune-no-cudagraphs"}, CPU,
         "engine.compile_mode: max-autotune-no-cudagraphs needs engine.compile true"),
        ({"compile_ddp": True}, CPU, "engine.compile_ddp: needs engine.compile true"),
        ({"bucket_mb": 0.5}, GPU, "engine.bucket_mb: 0.5 is too small for compiled networks"),
    ],
)  # fmt: skip
def test_rules_judge_what_auto_comes_to(
    photos: Path, asked: dict[str, Any], world: World, message: str
) -> None:
    engine = {"device": "auto", "compile": "auto", "bucket_mb": 25, "precision": "bf16"} | asked
    with pytest.raises(BadInput) as refused:
        resolve(make_config(photos, engine=engine), world, None)
    assert str(refused.value).startswith(message)


class Replayed:
    """Gradients as CUDA graphs give them: each at one address, overwritten by the next replay."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        for parameter in parameters:
            place = torch.zeros_like(parameter)
            # Another tensor on the same memory each time, so that autograd may take it as it is.
            parameter.register_hook(lambda grad, place=place: place.copy_(grad).detach())


def addresses(t: Training) -> list[int]:
    return [p.grad.data_ptr() for p in t.model.parameters() if p.grad is not None]


def some_steps(t: Training, resolved: Resolved, train_set: Images) -> tuple[str, list[list[int]]]:
    """Bits after three steps, and where the gradients were after each."""
    batches = resolved.loader.train(train_set, resolved.split, epoch=0, step=0, epochs=1)
    places = []
    for _ in range(3):
        train_step(t, batches)
        places.append(addresses(t))
    return bits(t), places


@pytest.mark.parametrize(
    "asked",
    [{}, {"send_gradients": "bf16"}, {"send_gradients": "bf16", "bucket_view": False}],
    ids=["one rank", "DDP", "DDP without views"],
)
def test_gradients_of_cuda_graphs_are_summed_in_memory_of_their_own(
    photos: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    """Accumulated; the same graph is played for both micro-batches of a step."""
    config = make_config(photos, **engine_changes(**asked), train={"max_local_batch": 6})

    def trained(*, graphs: bool, kept: bool) -> tuple[str, list[list[int]]]:
        monkeypatch.setattr(Resolved, "cuda_graphs", kept)
        with alone(config) as (t, resolved, train_set, _):
            if graphs:
                Replayed(t.model.parameters())
            return some_steps(t, resolved, train_set)

    right, none = trained(graphs=False, kept=False)
    assert none == [[], [], []]
    assert trained(graphs=True, kept=False)[0] != right, "what is simulated is the fault"
    found, places = trained(graphs=True, kept=True)
    assert found == right
    assert len(places[0]) == len(set(places[0])) == 59
    assert places[0] == places[1] == places[2]


@pytest.mark.gpu
@pytest.mark.parametrize("bucket_view", [True, False])
@pytest.mark.parametrize("send_gradients", ["fp32", "bf16"])
def test_cuda_graphs_learn_what_the_same_network_does_without(
    photos: Path, bucket_view: bool, send_gradients: str
) -> None:
    """With two micro-batches in a step; with bf16 under DDP."""
    losses, peaks = [], []
    for mode in ("default", "reduce-overhead"):
        asked = {"device": "cuda", "compile": True, "compile_mode": mode, "bucket_mb": 1}
        asked |= {"bucket_view": bucket_view, "send_gradients": send_gradients}
        config = make_config(photos, **engine_changes(**asked), train={"max_local_batch": 6})
        world = from_environment("cuda", {})
        resolved, train_set, _ = make_resolved(config, world)
        with process_group(world, 60):
            t = fresh(resolved)
            peaks.append(torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated())
            batches = resolved.loader.train(train_set, resolved.split, epoch=0, step=0, epochs=1)
            for _ in range(5):
                train_step(t, batches)
            losses.append(t.counts.open_period()[1].tolist())
        torch.compiler.reset()
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert max(peaks) < 2**23, "the warm-up's memory is not counted as training's"


@pytest.mark.parametrize(
    "changes", [{}, {"train": {"max_local_batch": 6}}], ids=["plain", "accumulating"]
)
def test_one_rank_without_ddp_has_the_bits_of_one_rank_under_it(
    photos: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    config = make_config(photos, **engine_changes(), **changes)
    kinds, found = [], []
    for wanted in (None, True):
        if wanted is not None:
            monkeypatch.setattr(Resolved, "under_ddp", wanted)
        with alone(config) as (t, resolved, train_set, _):
            kinds.append(type(t.ddp))
            found.append(some_steps(t, resolved, train_set)[0])
    assert kinds == [engine.Classifier, torch.nn.parallel.DistributedDataParallel]
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["resnet18", "densenet_40_12"])
def test_a_padded_stem_computes_the_same(photos: Path, name: str) -> None:
    found = []
    for padded in (False, True):
        config = make_config(photos, model={"name": name}, **engine_changes(pad_stem=padded))
        resolved, *_ = make_resolved(config, CPU)
        net = engine.network(resolved, 4)
        model = engine.place(net, resolved).eval()
        convolved: list[int] = []
        for module in net.modules():
            if isinstance(module, _PaddedStem):
                convolved.append(module.weight.shape[1])
        images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8, generator=generator())
        logits = model(images)
        logits.square().sum().backward()
        first = next(net.parameters())
        found.append((logits, first.grad, list(net.state_dict()), convolved))
    (plain, grad, keys, none), (padded_logits, padded_grad, padded_keys, channels) = found
    assert (none, channels, keys) == ([], [3], padded_keys)
    torch.testing.assert_close(padded_logits, plain)
    torch.testing.assert_close(padded_grad, grad)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_coordinate_descent_is_asked_for_besides_the_mode(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(engine.Classifier, "compile", lambda _, **how: given.append(how))
    modes = ("default", "max-autotune-no-cudagraphs")
    for mode, descent in itertools.product(modes, (False, True)):
        asked = {"compile": True, "bucket_mb": 1, "compile_mode": mode}
        config = make_config(photos, **engine_changes(**asked, coordinate_descent=descent))
        resolved, *_ = make_resolved(config, CPU)
        engine.place(engine.network(resolved, 4), resolved)
    tuned = {"coordinate_descent_tuning": True}
    assert given == [
        {"dynamic": False, "mode": "default"},
        {"dynamic": False, "options": tuned},
        {"dynamic": False, "mode": "max-autotune-no-cudagraphs"},
        {"dynamic": False, "options": {"max_autotune": True, **tuned}},
    ]


@pytest.mark.gpu
def test_cudnn_tries_as_many_algorithms_as_it_is_let(photos: Path) -> None:
    for limit in (0, 10):
        asked = {"device": "cuda", "cudnn_benchmark_limit": limit}
        config = make_config(photos, **engine_changes(**asked))
        engine.set_up_torch(make_resolved(config, from_environment("cuda", {}))[0])
        assert torch.backends.cudnn.benchmark_limit == limit


@pytest.mark.parametrize(
    ("batch", "most", "world", "note"),
    [
        (32, None, GPU, "32 images at a time do not fill a GPU: raise --train.global-batch "
         "(64 or more for each), or --engine.compile-mode reduce-overhead"),
        (96, 32, GPU, "32 images at a time do not fill a GPU: raise --train.max-local-batch "
         "(64 or more for each), or --engine.compile-mode reduce-overhead"),
        (64, None, GPU, None),
        (32, None, CPU, None),
    ],
)  # fmt: skip
def test_a_run_says_if_its_batch_does_not_fill_the_gpu(
    photos: Path, monkeypatch: pytest.MonkeyPatch,
    batch: int, most: int | None, world: World, note: str | None,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    config = make_config(photos, train={"global_batch": batch, "max_local_batch": most})
    resolved = replace(make_resolved(config, CPU)[0], world=world)
    notes = [line.strip() for line in resolved.lines() if "note:" in line]
    assert notes == ([f"note: {note}"] if note else [])


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize(
    "asked",
    ["", "--engine.compile", "--engine.compile false", "--engine.compile --engine.compile-ddp",
     "--engine.fused-optimizer false --engine.send-gradients bf16 --engine.bucket-view false",
     "--engine.compile-mode max-autotune", "--engine.bucket-mb 0.5"],
)  # fmt: skip
def test_what_a_sweep_tries_can_be_asked_for(asked: str, on_gpu: bool) -> None:
    words = ["--data.source", "dali", *asked.split()]
    config = load.load(words, prog="x")
    compiled = on_gpu if config.engine.compile == "auto" else config.engine.compile
    came_to = {"engine.compile": load.as_text(compiled), "train.max_local_batch": "16",
               "data.decode": "gpu" if on_gpu else "cpu"}  # fmt: skip
    facts = {"on_gpu": on_gpu, "cores": 4, "came_to": came_to}
    found = switches.candidates(config, 2, facts)
    for key, values in found.items():
        for value in values:
            flag = f"--{key.replace('_', '-')}"
            tried = load.load([*words, flag, value], prog="x")
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
        "model.name": "plain20", "engine.precision": "fp32",  # few kernels
        "engine.compile": "true", "engine.bucket-mb": "1", "run.name": "run",  # two buckets
        "data.train": str(photos), "data.val": str(photos), "train.global-batch": "12",
        "eval.local-batch": "7", "log.every-steps": "3",
    } | changes  # fmt: skip
    words = [word for key, value in flags.items() for word in (f"--{key}", value)]
    done = python(small_net.__file__, *TINY, *small_net.FLAGS, *on_gpu(), *words, ranks=2,
                  cwd=tmp_path, timeout_s=600)  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "runs" / "run" / "result.json").read_text())
    assert (result["compiled"], result["recompiles"], result["graph_breaks"]) == (True, 0, 0)
    assert result["val_images"] == 101
    weights = torch.load(tmp_path / "runs" / "run" / "checkpoints" / "final.pt")["model"]
    assert not [key for key in weights if "_orig_mod" in key or key.startswith("module.")]
