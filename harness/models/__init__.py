"""The networks that a config can name, and how one is built."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from harness import config
from harness.errors import BadInput
from harness.models.resnet import BasicBlock, Block, Bottleneck, Shortcut, Stem, resnet

__all__ = ["MODELS", "Spec", "build"]


@dataclass(frozen=True)
class Spec:
    """What a name stands for; `stem` and `shortcut` are what `auto` stands for with it."""

    block: Block
    blocks: tuple[int, ...]
    width: int = 64
    stem: Stem = "imagenet"
    shortcut: Shortcut = "B"


def _cifar(n: int) -> Spec:
    """The paper's network of 6n+2 layers (He et al. 2015, 4.2)."""
    return Spec(BasicBlock, (n, n, n), width=16, stem="cifar", shortcut="A")


MODELS: dict[str, Spec] = {
    "resnet18": Spec(BasicBlock, (2, 2, 2, 2)),
    "resnet34": Spec(BasicBlock, (3, 4, 6, 3)),
    "resnet50": Spec(Bottleneck, (3, 4, 6, 3)),
    "resnet101": Spec(Bottleneck, (3, 4, 23, 3)),
    "resnet152": Spec(Bottleneck, (3, 8, 36, 3)),
    "resnet20": _cifar(3),
    "resnet32": _cifar(5),
    "resnet44": _cifar(7),
    "resnet56": _cifar(9),
    "resnet110": _cifar(18),
    "resnet1202": _cifar(200),
}


def build(model: config.Model, classes: int) -> nn.Module:
    """The network that the config describes, with fresh weights from torch's generator.

    It maps float images (N, 3, H, W) to logits (N, classes). `model.weights` is not read here.

    Raises:
        BadInput: no classes, or settings that do not fit this network.
    """
    spec = MODELS[model.name]
    stem: Stem = spec.stem if model.stem == "auto" else model.stem
    shortcut: Shortcut = spec.shortcut if model.shortcut == "auto" else model.shortcut
    if classes < 1:
        raise BadInput(f"model.name: {model.name} needs at least 1 class, not {classes}")
    if spec.stem == "cifar" and stem == "imagenet":
        raise BadInput(f"model.stem: {model.name} is a CIFAR network and has no imagenet stem")
    if spec.block is BasicBlock and model.stride_in == "1x1":
        raise BadInput(
            f"model.stride_in: the blocks of {model.name} have no 1x1 convolution; use 3x3"
        )
    return resnet(
        spec.block,
        spec.blocks,
        classes,
        width=spec.width,
        stem=stem,
        shortcut=shortcut,
        stride_in=model.stride_in,
        zero_gamma=model.zero_gamma,
        fc_init_std=model.fc_init_std,
    )
