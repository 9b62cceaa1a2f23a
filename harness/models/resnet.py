"""ResNet for ImageNet and CIFAR (He et al. 2015): blocks, shortcuts and initialization.

A network is a plain `nn.Sequential` with named children, so its forward pass is the order in which
they are put in. The names are torchvision's, so that published weights fit.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Stem = Literal["imagenet", "cifar"]
Shortcut = Literal["A", "B", "C", "none"]


def _conv(channels_in: int, channels_out: int, kernel_px: int, stride: int = 1) -> nn.Conv2d:
    """Return a padded convolution; without a bias, as the BN that follows has one."""
    return nn.Conv2d(channels_in, channels_out, kernel_px, stride, kernel_px // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2015, fig. 5 left), or without (fig. 3)."""

    expansion = 1

    def __init__(
        self, channels_in: int, width: int, strides: tuple[int, int], shortcut: nn.Module | None
    ) -> None:
        super().__init__()
        self.conv1 = _conv(channels_in, width, 3, strides[0])
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, strides[1])
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, H, W) -> (N, width, H / stride, W / stride)."""
        y = self.bn2(self.conv2(torch.relu_(self.bn1(self.conv1(x)))))
        if self.downsample is not None:
            # In place is safe: BN's backward pass needs its input, not its output.
            y += self.downsample(x)
        return torch.relu_(y)


class Bottleneck(nn.Module):
    """1x1 down to `width`, 3x3, 1x1 up to 4 x `width` around a shortcut (ibid., fig. 5 right)."""

    expansion = 4

    def __init__(
        self, channels_in: int, width: int, strides: tuple[int, int], shortcut: nn.Module | None
    ) -> None:
        super().__init__()
        channels_out = width * self.expansion
        self.conv1 = _conv(channels_in, width, 1, strides[0])
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, strides[1])
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, channels_out, 1)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, H, W) -> (N, 4 * width, H / stride, W / stride)."""
        y = torch.relu_(self.bn1(self.conv1(x)))
        y = torch.relu_(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        if self.downsample is not None:
            # In place as BN's backward pass needs its input, not its output.
            y += self.downsample(x)
        return torch.relu_(y)


Block = type[BasicBlock] | type[Bottleneck]


class PadShortcut(nn.Module):
    """Every `stride`-th pixel, and zeros for the new channels (ibid., 3.3, option A)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        # Half of the zeros on each side, as in published weights; the paper does not specify it.
        self.before = (channels_out - channels_in) // 2
        self.after = channels_out - channels_in - self.before

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, H, W) -> (N, channels_out, H / stride, W / stride)."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))


def _shortcut(kind: Shortcut, channels_in: int, channels_out: int, stride: int) -> nn.Module | None:
    """Return a block's shortcut (ibid., 3.3): identity, zero padding, a projection, or None."""
    if kind == "none":
        return None
    if channels_in == channels_out and stride == 1 and kind != "C":
        return nn.Identity()
    if kind == "A":
        return PadShortcut(channels_in, channels_out, stride)
    return nn.Sequential(_conv(channels_in, channels_out, 1, stride), nn.BatchNorm2d(channels_out))


def _stem(stem: Stem, width: int) -> dict[str, nn.Module]:
    """Return the layers before the blocks; for ImageNet they divide the image's side by 4."""
    large = stem == "imagenet"
    layers: dict[str, nn.Module] = {
        "conv1": _conv(3, width, 7, stride=2) if large else _conv(3, width, 3),
        "bn1": nn.BatchNorm2d(width),
        "relu": nn.ReLU(inplace=True),
    }
    if large:
        layers["maxpool"] = nn.MaxPool2d(3, stride=2, padding=1)
    return layers


def _initialize(network: nn.Module, zero_gamma: bool, fc_init_std: float | None) -> None:
    """Initialize convolutions by He et al. 2015 ("Delving deep"), 2.2, with fan-out.

    The rest is torch's default, unless the settings ask for Goyal et al. 2017, 5.1.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear) and fc_init_std is not None:
            nn.init.normal_(module.weight, std=fc_init_std)
            nn.init.zeros_(module.bias)
        elif isinstance(module, BasicBlock | Bottleneck) and zero_gamma:
            nn.init.zeros_((module.bn2 if isinstance(module, BasicBlock) else module.bn3).weight)


def resnet(
    blocks: Sequence[int],
    classes: int,
    *,
    bottleneck: bool = False,
    width: int = 64,
    stem: Stem = "imagenet",
    shortcut: Shortcut = "B",
    stride_in: Literal["3x3", "1x1"] = "3x3",
    zero_gamma: bool = False,
    fc_init_std: float | None = None,
) -> nn.Sequential:
    """Return a ResNet from images (N, 3, H, W) to logits (N, classes).

    Each stage has that many blocks of one width. The first block of each stage but the first halves
    the image's side and doubles the width (ibid., 3.3 and 4.2).
    """
    layers = _stem(stem, width)
    block: Block = Bottleneck if bottleneck else BasicBlock
    channels = width
    for stage, count in enumerate(blocks):
        layers[f"layer{stage + 1}"] = sequence = nn.Sequential()
        stage_width = width * 2**stage
        channels_out = stage_width * block.expansion
        for number in range(count):
            stride = 2 if stage > 0 and number == 0 else 1
            strides = (1, stride) if bottleneck and stride_in == "3x3" else (stride, 1)
            around = _shortcut(shortcut, channels, channels_out, stride)
            sequence.append(block(channels, stage_width, strides, around))
            channels = channels_out
    layers["avgpool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels, classes)
    network = nn.Sequential(OrderedDict(layers))
    _initialize(network, zero_gamma, fc_init_std)
    return network
