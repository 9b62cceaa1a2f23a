"""Compute a network's first convolution with a fourth channel of zeros."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


class _PaddedStem(nn.Module):
    """A convolution with the given parameters that computes with an extra channel of zeros."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self._options: dict[str, Any] = {"stride": conv.stride, "padding": conv.padding}

    def forward(self, images: Tensor) -> Tensor:
        images, weight = (F.pad(x, (0, 0, 0, 0, 0, 1)) for x in (images, self.weight))
        maps: Tensor = F.conv2d(images, weight, self.bias, **self._options)
        return maps


def pad_stem(net: nn.Module) -> None:
    """Pad the first convolution to four channels: cuDNN has no fast kernels for three."""
    convolutions = ((name, m) for name, m in net.named_modules() if isinstance(m, nn.Conv2d))
    name, first = next(convolutions)
    net.set_submodule(name, _PaddedStem(first))
