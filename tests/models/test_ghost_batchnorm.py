"""BN over groups of images: as if each group were a batch of its own, and only while training."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import config
from harness.config import load
from harness.errors import BadInput
from harness.models import build
from harness.models.ghost_batchnorm import GhostBatchNorm2d, use_groups
from harness.trainer.resolve import split_batch

IMAGES = 4


def batch(groups: int, channels: int = 6, side_px: int = 5) -> Tensor:
    """Groups that differ in mean and spread, so that one's statistics do not fit another."""
    generator = torch.Generator().manual_seed(groups)
    x = torch.randn(groups, IMAGES, channels, side_px, side_px, generator=generator)
    scale = torch.arange(1, groups + 1).view(-1, 1, 1, 1, 1)
    return (x * scale + scale).flatten(0, 1)


def norm(channels: int = 6) -> nn.BatchNorm2d:
    bn = nn.BatchNorm2d(channels)
    with torch.no_grad():
        for tensor in (bn.weight, bn.bias, bn.running_mean, bn.running_var):
            assert tensor is not None
            tensor.copy_(torch.rand(channels, generator=torch.Generator().manual_seed(3)) + 0.5)
    return bn


def ghost(bn: nn.BatchNorm2d) -> GhostBatchNorm2d:
    return GhostBatchNorm2d(copy.deepcopy(bn), IMAGES)


def passes(bn: nn.Module, parts: list[Tensor], layout: torch.memory_format) -> dict[str, Tensor]:
    """Output and gradients of the parts together; buffers after the first of them."""
    buffers, outputs, inputs = None, [], []
    for part in parts:
        x = part.detach().clone(memory_format=layout).requires_grad_()
        outputs.append(bn(x))
        inputs.append(x)
        buffers = buffers or {name: buffer.clone() for name, buffer in bn.named_buffers()}
    y = torch.cat(outputs)
    y.backward(batch(len(y) // IMAGES).sin())
    gradients = [x.grad for x in inputs if x.grad is not None]
    return {
        "y": y.detach(),
        "x.grad": torch.cat(gradients),
        **{f"{name}.grad": p.grad for name, p in bn.named_parameters() if p.grad is not None},
        **(buffers or {}),
    }


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 5])
def test_equals_bn_of_the_split_batch(
    groups: int, compiled: bool, layout: torch.memory_format
) -> None:
    x, bn = batch(groups), norm()
    ours: nn.Module = ghost(bn)
    if compiled:
        torch._dynamo.reset()
        ours.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    found = passes(ours, [x], layout)
    expected = passes(bn, list(x.split(IMAGES)), layout)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Relative to the largest, as sums over many images have the rounding of their largest part.
        error = (found[name] - value).abs().max() / value.abs().max()
        assert error <= (1e-6 if compiled else 2e-7), name
    assert found["num_batches_tracked"] == 1
    if groups > 1:
        whole = passes(norm(), [x], layout)
        assert (whole["y"] - expected["y"]).abs().max() > 0.1, "or the test would say nothing"


@pytest.mark.parametrize("compiled", [False, True])
def test_keeps_layout_and_precision_under_autocast(compiled: bool) -> None:
    x = batch(3).to(torch.bfloat16).to(memory_format=torch.channels_last).requires_grad_()
    ours: nn.Module = ghost(norm())
    if compiled:
        torch._dynamo.reset()
        ours.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ours(x)
    y.float().square().sum().backward()
    assert x.grad is not None
    for tensor in (y, x.grad):
        assert tensor.dtype == torch.bfloat16
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    parts = torch.cat([norm()(part) for part in x.detach().float().split(IMAGES)])
    assert (y.float() - parts).abs().max() < 2**-7 * parts.abs().max(), "statistics in fp32"


def test_evaluation_parameters_and_keys_are_those_of_plain_bn() -> None:
    torch.manual_seed(0)
    plain = build(config.Model(name="resnet20"), 10)
    torch.manual_seed(0)
    grouped = build(config.Model(name="resnet20", bn_images=2), 10)
    state = plain.state_dict()
    assert grouped.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in grouped.state_dict().items())
    kinds = {type(m) for m in grouped.modules() if isinstance(m, nn.BatchNorm2d)}
    assert kinds == {GhostBatchNorm2d}
    x = torch.randn(4, 3, 32, 32)
    for model in (plain, grouped):
        model.train()(x[:2])
    with torch.inference_mode():
        assert torch.equal(grouped.eval()(x), plain.eval()(x))


def test_options_of_the_first_weights_outlive_the_change() -> None:
    model = build(config.Model(name="resnet20", bn_images=2, zero_gamma=True), 10)
    assert not model.get_parameter("layer1.0.bn2.weight").any()
    with torch.device("meta"):
        dense = build(config.Model(name="densenet121", bn_images=32), 1000)
    assert dense.get_parameter("features.norm5.weight").device.type == "meta"


@pytest.mark.parametrize("name", ["resnet20", "densenet_40_12"])
def test_one_large_batch_learns_what_many_ranks_would(name: Any) -> None:
    """Gradients of a local batch of 8 in groups of 2: the mean of four ranks' with 2 images."""
    torch.manual_seed(0)
    plain = build(config.Model(name=name), 10).double()
    grouped = copy.deepcopy(plain)
    use_groups(grouped, 2)
    images, labels = torch.randn(8, 3, 8, 8).double(), torch.arange(8)
    F.cross_entropy(grouped.train()(images), labels).backward()
    for rank in range(4):
        own = slice(2 * rank, 2 * rank + 2)
        (F.cross_entropy(plain.train()(images[own]), labels[own]) / 4).backward()
        if rank == 0:
            statistics = {key: buffer.clone() for key, buffer in plain.named_buffers()}
    for (key, ours), theirs in zip(grouped.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=key)
    for key, buffer in grouped.named_buffers():
        torch.testing.assert_close(buffer, statistics[key], msg=key)


def test_a_ragged_batch_is_refused_and_a_small_one_is_one_group() -> None:
    with pytest.raises(ValueError, match="10 images are no multiple of 4"):
        ghost(norm())(batch(3)[:10])
    small = batch(1)[:3]
    assert torch.equal(ghost(norm())(small), norm()(small))


@pytest.mark.parametrize(
    ("global_batch", "world", "most", "local", "accumulate"),
    [(256, 8, None, 32, 1), (8192, 8, 256, 256, 4), (1440, 1, 200, 160, 9), (192, 2, 40, 32, 3)],
)
def test_local_batches_are_multiples(
    global_batch: int, world: int, most: int | None, local: int, accumulate: int
) -> None:
    split = split_batch(cfg_train(global_batch, most), world, 32)
    assert (split.local_batch, split.accumulate) == (local, accumulate)


def cfg_train(global_batch: int, most: int | None) -> config.Train:
    return config.Train(global_batch=global_batch, max_local_batch=most)


@pytest.mark.parametrize(
    ("global_batch", "world", "most", "message"),
    [
        (256, 16, None, "model.bn_images: 16 images per rank, .*as a multiple of 512, or another"),
        (384, 8, None, "model.bn_images: 48 images per rank, .* multiples of 32; .*of 256, or"),
        (256, 2, 16, "at most 16 at once, .*, and train.max_local_batch at least 32"),
    ],
)
def test_local_batches_that_are_no_multiple_are_refused(
    global_batch: int, world: int, most: int | None, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        split_batch(cfg_train(global_batch, most), world, 32)


def test_a_global_batch_that_is_no_multiple_is_refused_before_torch() -> None:
    ask = ["--data.source", "synthetic", "--model.bn-images", "32", "--train.global-batch"]
    load.load([*ask, "64"])
    with pytest.raises(BadInput, match=r"model\.bn_images: .* 100 .* of 32; use 96 or 128$"):
        load.load([*ask, "100"])
    with pytest.raises(BadInput, match=r"use 32$"):
        load.load([*ask, "10"])
