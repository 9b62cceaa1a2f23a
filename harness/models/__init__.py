"""Models: the table of networks that a config can name, and the function that builds one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from harness import config
from harness.config.rules import network_rules
from harness.errors import BadInput
from harness.models.resnet import BasicBlock, Block, Bottleneck, Shortcut, Stem, resnet

__all__ = ["MODELS", "Dense", "Residual", "build", "criterion"]


@dataclass(frozen=True)
class Residual:
    """A ResNet or a plain network; `stem` and `shortcut` are its defaults for `auto`."""

    block: Block
    blocks: tuple[int, ...]
    width: int = 64
    stem: Stem = "imagenet"
    shortcut: Shortcut = "B"


@dataclass(frozen=True)
class Dense:
    """A DenseNet: layers per block, growth rate, output channels of the stem."""

    blocks: tuple[int, ...]
    growth: int
    channels: int
    bottleneck: bool = True
    compression: float = 0.5
    imagenet: bool = True


def _cifar(n: int, shortcut: Shortcut = "A") -> Residual:
    """The paper's network of 6n+2 layers (He et al. 2015, 4.2)."""
    return Residual(BasicBlock, (n, n, n), width=16, stem="cifar", shortcut=shortcut)


def _cifar_dense(depth: int, growth: int) -> Dense:
    """The paper's basic network: three blocks, 16 channels before them (Huang et al. 2017, 3)."""
    blocks = ((depth - 4) // 3,) * 3
    return Dense(blocks, growth, 16, bottleneck=False, compression=1.0, imagenet=False)


def _cifar_bc(depth: int, growth: int) -> Dense:
    """DenseNet-BC: two convolutions per layer, twice the growth rate before the blocks (ibid.)."""
    return Dense(((depth - 4) // 6,) * 3, growth, 2 * growth, imagenet=False)


MODELS: dict[str, Residual | Dense] = {
    "resnet18": Residual(BasicBlock, (2, 2, 2, 2)),
    "resnet34": Residual(BasicBlock, (3, 4, 6, 3)),
    "resnet50": Residual(Bottleneck, (3, 4, 6, 3)),
    "resnet101": Residual(Bottleneck, (3, 4, 23, 3)),
    "resnet152": Residual(Bottleneck, (3, 8, 36, 3)),
    "resnet20": _cifar(3),
    "resnet32": _cifar(5),
    "resnet44": _cifar(7),
    "resnet56": _cifar(9),
    "resnet110": _cifar(18),
    "resnet1202": _cifar(200),
    "plain18": Residual(BasicBlock, (2, 2, 2, 2), shortcut="none"),
    "plain34": Residual(BasicBlock, (3, 4, 6, 3), shortcut="none"),
    "plain20": _cifar(3, "none"),
    "plain32": _cifar(5, "none"),
    "plain44": _cifar(7, "none"),
    "plain56": _cifar(9, "none"),
    "densenet121": Dense((6, 12, 24, 16), 32, 64),
    "densenet161": Dense((6, 12, 36, 24), 48, 96),
    "densenet169": Dense((6, 12, 32, 32), 32, 64),
    "densenet201": Dense((6, 12, 48, 32), 32, 64),
    "densenet264": Dense((6, 12, 64, 48), 32, 64),
    "densenet_40_12": _cifar_dense(40, 12),
    "densenet_100_12": _cifar_dense(100, 12),
    "densenet_100_24": _cifar_dense(100, 24),
    "densenet_bc_100_12": _cifar_bc(100, 12),
    "densenet_bc_250_24": _cifar_bc(250, 24),
    "densenet_bc_190_40": _cifar_bc(190, 40),
}


def build(model: config.Model, classes: int) -> nn.Module:
    """Return the network that the config describes, with random weights from torch's generator.

    It maps float images (N, 3, H, W) to logits (N, classes). `model.weights` is not read here.

    Raises:
        BadInput: there are no classes, or the settings do not fit this network.
    """
    spec = MODELS[model.name]
    if classes < 1:
        raise BadInput(f"model.name: {model.name} needs at least 1 class, not {classes}")
    for broken, message in network_rules(model):
        if broken:
            raise BadInput(message)
    if isinstance(spec, Dense):
        network = _dense(spec, model, classes)
    else:
        network = _residual(spec, model, classes)
    if model.bn_images is not None:
        from harness.models.ghost_batchnorm import use_groups

        use_groups(network, model.bn_images)
    return network


def criterion(label_smoothing: float = 0.0) -> nn.CrossEntropyLoss:
    """Return the loss: from float32 logits (N, classes) and labels (N) to its mean over images."""
    return nn.CrossEntropyLoss(label_smoothing=label_smoothing)


def _residual(spec: Residual, model: config.Model, classes: int) -> nn.Module:
    return resnet(
        spec.block,
        spec.blocks,
        classes,
        width=spec.width,
        stem=spec.stem if model.stem == "auto" else model.stem,
        shortcut=spec.shortcut if model.shortcut == "auto" else model.shortcut,
        stride_in=model.stride_in,
        zero_gamma=model.zero_gamma,
        fc_init_std=model.fc_init_std,
    )


def _dense(spec: Dense, model: config.Model, classes: int) -> nn.Module:
    from harness.models.densenet import densenet

    return densenet(
        spec.blocks,
        spec.growth,
        spec.channels,
        classes,
        bottleneck=spec.bottleneck,
        compression=spec.compression,
        imagenet=spec.imagenet,
        dropout=model.dropout,
        memory_saving=model.memory_saving,
        fc_init_std=model.fc_init_std,
    )
