"""Zoo: the networks that a config can name; of each its family, sizes and settings. No torch.

He et al. 2015: ResNets for ImageNet and CIFAR, and the same without shortcuts; Huang et al. 2017:
DenseNets.
"""

from dataclasses import dataclass
from typing import Any

MEANING = (
    "resnet18 to 152, plain18 and 34 (no shortcuts), densenet121 to 264: the ImageNet networks; "
    "resnet20 to 1202, plain20 to 56: 6n+2 layers for CIFAR; densenet_40_12: for CIFAR, 40 layers, "
    "growth rate 12; bc: with bottlenecks and compression."
)
"""What the names mean, for --help."""

SETTINGS = {
    "stem": "has its own",
    "shortcut": "has no shortcuts",
    "zero_gamma": "has no residual blocks",
    "stride_in": "has no 1x1 convolution that could stride",
    "dropout": "has no dropout, only DenseNets have",
    "memory_saving": "cannot save memory so, only DenseNets can",
}
"""Settings of the section `model` that not all networks have -> why another network refuses it."""


@dataclass(frozen=True)
class Network:
    """A network that a config can name: `harness.models.FAMILY.FAMILY(**sizes)` builds it."""

    family: str
    sizes: dict[str, Any]  # the network's defaults where a setting is `auto`
    settings: tuple[str, ...]  # those of SETTINGS that it has
    cifar: bool = False  # made for CIFAR's images and classes, not ImageNet's

    @property
    def classes(self) -> int:
        """Number of classes that it was made for."""
        return 10 if self.cifar else 1000

    @property
    def image_px(self) -> int:
        """Side of the images that it was made for, px."""
        return 32 if self.cifar else 224


def _resnet(*blocks: int, **sizes: Any) -> Network:
    settings: tuple[str, ...] = ("stem", "shortcut", "zero_gamma")
    settings += ("stride_in",) if "bottleneck" in sizes else ()
    return Network("resnet", {"blocks": blocks, **sizes}, settings, sizes.get("stem") == "cifar")


def _cifar_resnet(n: int) -> Network:
    """The paper's network of 6n+2 layers (He et al. 2015, 4.2)."""
    return _resnet(n, n, n, width=16, stem="cifar", shortcut="A")


def _plain(like: Network) -> Network:
    return Network("resnet", {**like.sizes, "shortcut": "none"}, ("stem",), like.cifar)


def _densenet(growth: int, channels: int, *blocks: int, **sizes: Any) -> Network:
    """Growth rate, output channels of the stem, layers per block."""
    sizes |= {"growth": growth, "channels": channels, "blocks": blocks}
    return Network("densenet", sizes, ("dropout", "memory_saving"), not sizes.get("imagenet", True))


def _cifar_densenet(depth: int, growth: int) -> Network:
    """The paper's basic network: three blocks, 16 channels before them (Huang et al. 2017, 3)."""
    blocks = ((depth - 4) // 3,) * 3
    return _densenet(growth, 16, *blocks, bottleneck=False, compression=1.0, imagenet=False)


def _cifar_densenet_bc(depth: int, growth: int) -> Network:
    """DenseNet-BC: two convolutions per layer, twice the growth rate before the blocks (ibid.)."""
    return _densenet(growth, 2 * growth, *((depth - 4) // 6,) * 3, imagenet=False)


MODELS = {
    "resnet18": _resnet(2, 2, 2, 2),
    "resnet34": _resnet(3, 4, 6, 3),
    "resnet50": _resnet(3, 4, 6, 3, bottleneck=True),
    "resnet101": _resnet(3, 4, 23, 3, bottleneck=True),
    "resnet152": _resnet(3, 8, 36, 3, bottleneck=True),
    "resnet20": _cifar_resnet(3),
    "resnet32": _cifar_resnet(5),
    "resnet44": _cifar_resnet(7),
    "resnet56": _cifar_resnet(9),
    "resnet110": _cifar_resnet(18),
    "resnet1202": _cifar_resnet(200),
    "plain18": _plain(_resnet(2, 2, 2, 2)),
    "plain34": _plain(_resnet(3, 4, 6, 3)),
    "plain20": _plain(_cifar_resnet(3)),
    "plain32": _plain(_cifar_resnet(5)),
    "plain44": _plain(_cifar_resnet(7)),
    "plain56": _plain(_cifar_resnet(9)),
    "densenet121": _densenet(32, 64, 6, 12, 24, 16),
    "densenet161": _densenet(48, 96, 6, 12, 36, 24),
    "densenet169": _densenet(32, 64, 6, 12, 32, 32),
    "densenet201": _densenet(32, 64, 6, 12, 48, 32),
    "densenet264": _densenet(32, 64, 6, 12, 64, 48),
    "densenet_40_12": _cifar_densenet(40, 12),
    "densenet_100_12": _cifar_densenet(100, 12),
    "densenet_100_24": _cifar_densenet(100, 24),
    "densenet_bc_100_12": _cifar_densenet_bc(100, 12),
    "densenet_bc_250_24": _cifar_densenet_bc(250, 24),
    "densenet_bc_190_40": _cifar_densenet_bc(190, 40),
}
