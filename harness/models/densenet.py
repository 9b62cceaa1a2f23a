"""DenseNet for ImageNet and CIFAR (Huang et al. 2017): dense layers, blocks and transitions.

The names are torchvision's, so that published weights fit.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

BOTTLENECK = 4
"""Channels after the 1x1 convolution of a bottleneck, in growth rates (ibid., 3)."""


def _conv(channels_in: int, channels_out: int, kernel_px: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_px, padding=kernel_px // 2, bias=False)


class DenseLayer(nn.Module):
    """`growth` new channels from all those before it: BN, ReLU, convolution (ibid., 3).

    With a bottleneck twice: 1x1 to 4 x growth channels, then 3x3.
    """

    def __init__(
        self, channels_in: int, growth: int, *, bottleneck: bool, dropout: float, saving: bool
    ) -> None:
        super().__init__()
        self.bottleneck, self.saving = bottleneck, saving
        self.norm1 = nn.BatchNorm2d(channels_in)
        if bottleneck:
            self.conv1 = _conv(channels_in, BOTTLENECK * growth, 1)
            self.norm2 = nn.BatchNorm2d(BOTTLENECK * growth)
            self.conv2 = _conv(BOTTLENECK * growth, growth, 3)
        else:
            self.conv1 = _conv(channels_in, growth, 3)
        self.dropout = nn.Dropout(dropout)

    def forward(self, before: list[Tensor]) -> Tensor:
        """Tensors (N, any, H, W), channels_in in all -> (N, growth, H, W)."""
        if self.saving and torch.is_grad_enabled():
            # A compiled graph updates BN's statistics outside of the recomputed part, and its
            # tracer does not support contexts that keep them from being updated twice.
            options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
            if not torch.compiler.is_compiling():
                norm = self.norm1
                options["context_fn"] = lambda: (nullcontext(), _on_copies_of_statistics(norm))
            y: Tensor = checkpoint(self._first, *before, **options)
        else:
            y = self._first(*before)
        y = self.dropout(y)
        return self.dropout(self.conv2(torch.relu_(self.norm2(y)))) if self.bottleneck else y

    def _first(self, *before: Tensor) -> Tensor:
        """Run the layers on the concatenated input, whose memory grows with the square of depth.

        Recomputation in the backward pass stops before the convolution, which costs most.
        """
        y: Tensor = self.conv1(torch.relu_(self.norm1(torch.cat(before, 1))))
        return y


@contextmanager
def _on_copies_of_statistics(norm: nn.BatchNorm2d) -> Iterator[None]:
    buffers = dict(norm.named_buffers())
    for name, buffer in buffers.items():
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for name, buffer in buffers.items():
            setattr(norm, name, buffer)


class DenseBlock(nn.Sequential):
    """Dense layers, each of which sees the block's input and the outputs of all before it."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, H, W) -> (N, channels_in + layers x growth, H, W)."""
        # Kept apart, and concatenated in each layer, so that checkpointing can recompute that.
        tensors = [x]
        for layer in self:
            tensors.append(layer(tensors))
        return torch.cat(tensors, 1)


class Transition(nn.Sequential):
    """Fewer channels by a 1x1 convolution, half of the side by an average (ibid., 3)."""

    def __init__(self, channels_in: int, channels_out: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels_in)
        self.relu = nn.ReLU(inplace=True)
        self.conv = _conv(channels_in, channels_out, 1)
        self.dropout = nn.Dropout(dropout)
        self.pool = nn.AvgPool2d(2, stride=2)


def _stem(channels: int, *, imagenet: bool) -> dict[str, nn.Module]:
    if not imagenet:
        return {"conv0": _conv(3, channels, 3)}
    return {
        "conv0": nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False),
        "norm0": nn.BatchNorm2d(channels),
        "relu0": nn.ReLU(inplace=True),
        "pool0": nn.MaxPool2d(3, stride=2, padding=1),
    }


def _initialize(network: nn.Module, fc_init_std: float | None) -> None:
    """Initialize the weights as the authors' code does: He's by fan-out, zero classifier bias."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
            if fc_init_std is not None:
                nn.init.normal_(module.weight, std=fc_init_std)


def densenet(
    blocks: Sequence[int],
    growth: int,
    channels: int,
    classes: int,
    *,
    bottleneck: bool = True,
    compression: float = 0.5,
    imagenet: bool = True,
    dropout: float = 0.0,
    memory_saving: bool = False,
    fc_init_std: float | None = None,
) -> nn.Sequential:
    """Return a DenseNet from images (N, 3, H, W) to logits (N, classes).

    The stem outputs `channels`, every layer adds `growth`, and a transition between two blocks
    keeps the share `compression` of them.
    """
    features = _stem(channels, imagenet=imagenet)
    for number, count in enumerate(blocks, 1):
        features[f"denseblock{number}"] = block = DenseBlock()
        for k in range(1, count + 1):
            layer = DenseLayer(
                channels, growth, bottleneck=bottleneck, dropout=dropout, saving=memory_saving
            )
            block.add_module(f"denselayer{k}", layer)
            channels += growth
        if number < len(blocks):
            channels_out = int(channels * compression)
            features[f"transition{number}"] = Transition(channels, channels_out, dropout)
            channels = channels_out
    features[f"norm{len(blocks) + 1}"] = nn.BatchNorm2d(channels)
    network = nn.Sequential(
        OrderedDict(
            features=nn.Sequential(OrderedDict(features)),
            relu=nn.ReLU(inplace=True),
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Linear(channels, classes),
        )
    )
    _initialize(network, fc_init_std)
    return network
