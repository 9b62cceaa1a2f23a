"""DenseNet: its shapes and options; saving memory changes nothing that is computed."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import in_ranks
from rich.console import Console
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trainings import alone, bits, make_config

from harness import config
from harness.distributed import from_environment, process_group
from harness.models import build
from harness.models.densenet import DenseBlock, DenseLayer, densenet
from harness.models.summary import layers, named, print_model, stages
from harness.models.zoo import MODELS
from harness.trainer.loop import train_step
from harness.trainer.setup import seed_dropout


def small(**settings: Any) -> nn.Module:
    """Two blocks with bottlenecks, the same weights in each call."""
    torch.manual_seed(0)
    return densenet([3, 2], 8, 16, 10, imagenet=False, **settings)


def images(count: int = 4, side_px: int = 16) -> Tensor:
    return torch.randn(count, 3, side_px, side_px, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module, module: nn.Module | None = None) -> dict[str, Tensor]:
    """Output, gradients and buffers after a forward and backward pass of `module` in training."""
    logits = (module or model).train()(images())
    F.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward()
    return {
        "logits": logits.detach(),
        **{f"{name}.grad": p.grad for name, p in model.named_parameters() if p.grad is not None},
        **{name: buffer.clone() for name, buffer in model.named_buffers()},
    }


def assert_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize(
    ("name", "widths", "sides_px"),
    [
        ("densenet121", (64, 256, 128, 512, 256, 1024, 512, 1024), (56, 28, 14, 7)),
        ("densenet161", (96, 384, 192, 768, 384, 2112, 1056, 2208), (56, 28, 14, 7)),
        ("densenet_40_12", (16, 160, 160, 304, 304, 448), (32, 16, 8)),
        ("densenet_bc_100_12", (24, 216, 108, 300, 150, 342), (32, 16, 8)),
    ],
)
def test_widths_and_sides_along_the_network(
    name: Any, widths: tuple[int, ...], sides_px: tuple[int, ...]
) -> None:
    cifar = MODELS[name].cifar
    with torch.device("meta"):
        model = build(config.Model(name=name), 10)
    outputs = {row.name: row.output for row in stages(model, layers(model, 32 if cifar else 224))}
    last_of_stem = outputs["features.conv0" if cifar else "features.pool0"]
    found = [last_of_stem]
    for number in range(1, len(sides_px) + 1):
        found.append(outputs[f"features.denseblock{number}"])
        if number < len(sides_px):
            found.append(outputs[f"features.transition{number}"])
    # A block keeps the side, the transition after it halves that.
    sides = [side for side in sides_px for _ in range(2)]
    assert found == [(width, side, side) for width, side in zip(widths, sides, strict=True)]


def test_each_layer_sees_all_before_it() -> None:
    block = small().get_submodule("features.denseblock1")
    assert isinstance(block, DenseBlock)
    block.eval()
    x = torch.randn(1, 16, 4, 4)
    with torch.no_grad():
        y = block(x)
        assert torch.equal(y[:, :16], x)
        for number, layer in enumerate(block):
            assert isinstance(layer, DenseLayer)
            before, after = 16 + 8 * number, 24 + 8 * number
            inner = F.relu(layer.norm1(y[:, :before]))
            expected = layer.conv2(F.relu(layer.norm2(layer.conv1(inner))))
            torch.testing.assert_close(y[:, before:after], expected)


def test_the_basic_network_has_one_convolution_per_layer_and_no_compression() -> None:
    basic = small(bottleneck=False, compression=1.0)
    names = [name for name, _ in basic.get_submodule("features.denseblock1").named_parameters()]
    assert names == [
        f"denselayer{k}.{name}"
        for k in (1, 2, 3)
        for name in ("norm1.weight", "norm1.bias", "conv1.weight")
    ]
    assert basic.get_submodule("features.transition1.conv").weight.shape[:2] == (40, 40)
    assert small().get_submodule("features.transition1.conv").weight.shape[:2] == (20, 40)


def test_first_weights_are_the_authors() -> None:
    torch.manual_seed(0)
    model = densenet([3, 2], 32, 64, 10, fc_init_std=0.01)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.weight.shape[0] * module.weight[0, 0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
    classifier = model.get_submodule("classifier")
    assert not classifier.bias.any()
    assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("bottleneck", [True, False])
@pytest.mark.parametrize("bn_images", [None, 2])
def test_saving_memory_gives_the_same_bits(bottleneck: bool, bn_images: int | None) -> None:
    found = []
    for saving in (False, True):
        name: Any = "densenet_bc_100_12" if bottleneck else "densenet_40_12"
        torch.manual_seed(0)
        model = build(config.Model(name=name, memory_saving=saving, bn_images=bn_images), 10)
        block = model.get_submodule("features.denseblock1")
        block.train()
        x = torch.randn(4, 24 if bottleneck else 16, 8, 8, requires_grad=True)
        y = block(x)
        y.square().mean().backward()
        assert x.grad is not None
        grads = {f"{key}.grad": p.grad for key, p in block.named_parameters()}
        assert all(grad is not None for grad in grads.values())
        buffers = dict(block.named_buffers())
        counts = [b.item() for key, b in buffers.items() if key.endswith("num_batches_tracked")]
        assert set(counts) == {1}, "BN counts a batch once, however often it is computed"
        found.append({"y": y.detach(), "x.grad": x.grad, **grads, **buffers})
    assert_bits(found[1], found[0])


def test_saving_memory_with_gradients_accumulated_and_in_evaluation() -> None:
    results = []
    for saving in (False, True):
        model = small(memory_saving=saving)
        gradients(model)
        results.append(gradients(model))
        with torch.inference_mode():
            results[-1]["eval"] = model.eval()(images())
    assert_bits(results[1], results[0])


class Living(TorchDispatchMode):
    """Bytes of the results of all operations that are still held."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return results

    def held(self) -> int:
        return sum(size for ref, size in self.storages.values() if not ref.expired())


def test_saving_memory_saves_most_of_it() -> None:
    held = []
    for saving in (False, True):
        torch.manual_seed(0)
        model = densenet([16], 12, 24, 10, imagenet=False, memory_saving=saving).train()
        with Living() as living:
            loss = model(images(2, 32)).sum()
            held.append(living.held())
        loss.backward()
    assert held[1] < 0.45 * held[0]


@pytest.mark.slow
def test_saving_memory_saves_most_of_it_compiled() -> None:
    """What the forward graph hands to the backward graph, split as inductor splits it."""
    held = []
    for saving in (False, True):
        torch.manual_seed(0)
        model = densenet([8], 12, 24, 10, imagenet=False, memory_saving=saving).train()
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="aot_eager_decomp_partition", dynamic=False)
        saved: dict[int, int] = {}

        def pack(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
            storage = tensor.untyped_storage()
            saved[storage._cdata] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            compiled(images(2, 32))
        held.append(sum(saved.values()))
    assert held[1] < 0.45 * held[0]


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_saving_memory_compiled(dropout: float) -> None:
    """By AOT autograd, which decides what is recomputed, without waiting for a compiler."""
    expected = gradients(small(dropout=0.0))
    model = small(memory_saving=True, dropout=dropout)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    found = gradients(model, compiled)
    counted = [v.item() for k, v in found.items() if k.endswith("num_batches_tracked")]
    assert set(counted) == {1}
    if dropout:
        assert not torch.allclose(found["logits"], expected["logits"])
    else:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def digests_under_ddp() -> dict[str, str]:
    """Of all that a step gives after one that was accumulated, by kind of DDP and saving."""
    world, found = from_environment("cpu"), {}
    with process_group(world, 60):
        for static_graph in (False, True):
            for saving in (False, True):
                model = small(memory_saving=saving)
                ddp = DistributedDataParallel(
                    model,
                    static_graph=static_graph,
                    gradient_as_bucket_view=True,
                    bucket_cap_mb=0.01,
                )
                gradients(model, ddp)
                with ddp.no_sync():
                    gradients(model, ddp)
                digest = hashlib.sha256()
                for value in gradients(model, ddp).values():
                    digest.update(value.numpy().tobytes())
                found[f"{static_graph} {saving}"] = digest.hexdigest()
    return found


@pytest.mark.slow
def test_saving_memory_under_ddp() -> None:
    for rank in in_ranks(2, digests_under_ddp):
        assert rank["False True"] == rank["False False"]
        assert rank["True True"] == rank["True False"]


def test_dropout_comes_after_each_convolution_but_the_first() -> None:
    model = small(dropout=0.25).train()
    zeros: dict[str, float] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            zeros[name] = (output == 0).float().mean().item()

        return hook

    convolutions = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    for name, module in model.named_modules():
        if isinstance(module, DenseLayer):
            module.register_forward_hook(note(f"{name}.conv2"))
            calls: list[nn.Module] = []
            module.dropout.register_forward_hook(lambda m, i, o, calls=calls: calls.append(m))
            module.calls = calls
        if isinstance(module, nn.Dropout) and "transition" in name:
            module.register_forward_hook(note(name.replace("dropout", "conv")))
    model(images(8))
    assert zeros.keys() == {name for name in convolutions[1:] if "conv1" not in name}
    assert all(share == pytest.approx(0.25, abs=0.05) for share in zeros.values())
    dense_layers = [m for m in model.modules() if isinstance(m, DenseLayer)]
    assert [len(layer.calls) for layer in dense_layers] == [2] * 5, "after the 1x1 and the 3x3"
    with torch.inference_mode():
        assert torch.equal(model.eval()(images()), model(images()))


@pytest.mark.gpu_too
def test_masks_follow_from_seed_step_and_rank(photos: Path) -> None:
    """A training that goes on from step 2 with other random numbers around it: the same bits."""
    settings = {"name": "densenet_40_12", "dropout": 0.2}
    config_ = make_config(photos, model=settings, train={"global_batch": 4, "max_local_batch": 2})
    found = []
    for disturb in (False, True):
        with alone(config_) as (t, resolved, train_set, _):
            batches = resolved.loader.train(train_set, resolved.split, epoch=0, step=0, epochs=1)
            for _ in range(2):
                if disturb:
                    torch.rand(7)
                train_step(t, batches)
            found.append(bits(t))
            masks = set()
            for micro_step in (0, 1, 1, 2**40):
                seed_dropout(resolved, micro_step)
                masks.add(tuple(F.dropout(torch.ones(64), 0.5).tolist()))
            assert len(masks) == 3
    assert found[0] == found[1]


def test_show_model_has_a_line_per_block() -> None:
    console = Console(file=io.StringIO(), width=100)
    print_model(named("densenet121"), 224, 1000, each_layer=False, console=console)
    assert isinstance(console.file, io.StringIO)
    rows = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert "features.denseblock1 6 DenseLayer 256x56x56 335,040 both 1.0404" in rows
    assert any(
        row.startswith("features.transition1 Transition 128x28x28 33,280 both") for row in rows
    )
    assert rows[-1] == "total 7,978,856 2.8342"
