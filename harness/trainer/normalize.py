"""Normalize images: from the bytes that a loader gives to the numbers that the network sees."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from harness.config import Data
from harness.data.augment import COLOR_UNITS
from harness.data.batch import Batch

if TYPE_CHECKING:
    from harness.data.mean import MeanImage


class Normalize(nn.Module):
    """Subtract the mean from uint8 images [n, 3, px, px] and divide by the standard deviation.

    Done inside the compiled network rather than in the loader: a quarter of the bytes is moved.
    A mean image, in place of `data.mean`, is subtracted before padding, crop and mirroring (He et
    al. 2015, 4.2), so that each crop has its own part of it, and padding equals the mean.
    """

    scale: Tensor
    shift: Tensor
    parts: Tensor

    def __init__(self, data: Data, mean_image: "MeanImage | None" = None) -> None:
        super().__init__()
        std = torch.tensor(data.std)
        self.colored = data.colour_std > 0
        self.has_parts = mean_image is not None
        self.pad_px = data.pad_px if data.augment == "pad_crop" else 0
        mean = torch.zeros(3) if self.has_parts else torch.tensor(data.mean)
        for name, channels in {"scale": 1 / (std * 255), "shift": -mean / std}.items():
            self.register_buffer(name, channels.view(1, 3, 1, 1), persistent=False)
        if mean_image is not None:
            over_255 = torch.from_numpy(_parts(mean_image, self.pad_px)) / 255
            parts = (over_255 / std[:, None, None].double()).float()
            self.register_buffer("parts", parts, persistent=False)

    def inputs(self, batch: Batch) -> tuple[Tensor | None, ...]:
        """Arguments of `forward` for a training batch: (images), or (images, part, color)."""
        samples, device = batch.samples, batch.images.device
        part = color = None
        if self.has_parts:
            x, y = (samples.cut + self.pad_px).T
            place = 2 * ((2 * self.pad_px + 1) * y + x) + samples.flip
            part = torch.from_numpy(place).to(device, non_blocking=True)
        if self.colored:
            assert samples.color is not None
            shift = samples.color.astype(np.float32) / COLOR_UNITS * 255
            color = torch.from_numpy(shift).to(device, non_blocking=True)
        return (batch.images, part, color) if self.has_parts or self.colored else (batch.images,)

    def forward(
        self, images: Tensor, part: Tensor | None = None, color: Tensor | None = None
    ) -> Tensor:
        """float32 [n, 3, px, px].

        Args:
            part: which part of the mean image, [n]; by default that of a whole image.
            color: added to R, G, B, [n, 3], in units of a byte.
        """
        pixels = images.float()
        if color is not None:
            pixels = pixels + color[:, :, None, None]
        pixels = pixels * self.scale + self.shift
        if self.has_parts:
            whole = 2 * ((2 * self.pad_px + 1) * self.pad_px + self.pad_px)
            pixels = pixels - (self.parts[whole] if part is None else self.parts[part])
        return pixels


def _parts(mean_image: "MeanImage", pad_px: int) -> "MeanImage":
    """The mean image as each crop has it: [2 (2 pad + 1)^2, 3, px, px], mirrored at odd places."""
    px, places = len(mean_image), range(2 * pad_px + 1)
    padded = np.pad(mean_image.transpose(2, 0, 1), ((0, 0), (pad_px, pad_px), (pad_px, pad_px)))
    crops = [padded[:, y : y + px, x : x + px] for y in places for x in places]
    return np.stack([side for crop in crops for side in (crop, crop[:, :, ::-1])])
