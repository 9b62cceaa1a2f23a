"""Augmentations: pure functions from uniform random numbers and an image's size to its geometry.

The geometry says which window is decoded, to what size it is resized, where the output is cropped,
and whether it is flipped. The stream draws the random numbers; the loaders apply the geometry.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from harness import config as cfg

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

WORDS = 24  # random numbers per sample: ten tries of (area, ratio), x, y, flip, one unused
_TRIES = 10


@dataclass(frozen=True)
class Geometry:
    """The geometry of n images, in px."""

    window: Ints  # [n, 4]: x, y, width and height of what is decoded
    resized: Ints  # [n, 2]: width and height after resizing
    cut: Ints  # [n, 2]: x and y of the output's square in the resized image
    flip: Ints  # [n]: 1 where the output is mirrored


@dataclass(frozen=True)
class Steps:
    """The steps that an augmentation needs."""

    window: bool = False  # decode only a window, not the full image
    resize: bool = False
    cut: bool = False  # crop the output's square, padded with black outside of the image


@dataclass(frozen=True)
class Augmentation:
    """An augmentation: the geometry, and maybe the color, as functions of random numbers."""

    of: Callable[[Floats, Ints, Ints], Geometry]  # of numbers [n, WORDS], widths, heights [n]
    steps: Steps
    views: int = 1  # crops per image; their geometries follow one another
    color: Callable[[Floats], Ints] | None = None  # [n, 4] -> shift [n, 3] in COLOR_UNITS


def resized_crop(
    area: tuple[float, float], ratio: tuple[float, float], out_px: int, *, flip: bool
) -> Augmentation:
    """Return torchvision's RandomResizedCrop: ten tries of (area, log ratio), else the center."""

    def law(u: Floats, width: Ints, height: Ints) -> Geometry:
        tries = u[:, : 2 * _TRIES].reshape(-1, _TRIES, 2)
        area_px = (width * height)[:, None] * (area[0] + (area[1] - area[0]) * tries[..., 0])
        low, high = np.log(ratio[0]), np.log(ratio[1])
        aspect = np.exp(low + (high - low) * tries[..., 1])
        w = np.rint(np.sqrt(area_px * aspect)).astype(np.int64)
        h = np.rint(np.sqrt(area_px / aspect)).astype(np.int64)
        fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
        first = np.argmax(fits, axis=1)
        image = np.arange(len(u))
        # The fallback is the largest crop in the center with an allowed ratio.
        w_fallback, h_fallback = _largest_in_center(width, height, ratio)
        any_fits = fits[image, first]
        w = np.where(any_fits, w[image, first], w_fallback)
        h = np.where(any_fits, h[image, first], h_fallback)
        x = np.where(any_fits, _uniform_int(u[:, 20], width - w + 1), (width - w) // 2)
        y = np.where(any_fits, _uniform_int(u[:, 21], height - h + 1), (height - h) // 2)
        side = np.full((len(u), 2), out_px, dtype=np.int64)
        window = np.stack([x, y, w, h], axis=1)
        return Geometry(window, side, np.zeros_like(side), _coin(u[:, 22], flip))

    return Augmentation(law, Steps(window=True, resize=True))


def pad_crop(pad_px: int, out_px: int, *, flip: bool) -> Augmentation:
    """Return the CIFAR papers' augmentation: pad, then a random crop (He et al. 2015, 4.2)."""

    def law(u: Floats, width: Ints, height: Ints) -> Geometry:
        size = np.stack([width, height], axis=1)
        cut = _uniform_int(u[:, 20:22], size + 2 * pad_px - out_px + 1) - pad_px
        return Geometry(_whole(width, height), size, cut, _coin(u[:, 22], flip))

    return Augmentation(law, Steps(cut=True))


def scale_jitter(least_px: int, most_px: int, out_px: int, *, flip: bool) -> Augmentation:
    """Return scale jitter: shorter side to a random length, random crop (He et al. 2015, 3.4)."""

    def law(u: Floats, width: Ints, height: Ints) -> Geometry:
        shorter = least_px + _uniform_int(u[:, 0], np.full(len(u), most_px - least_px + 1))
        size = _shorter_side_to(shorter[:, None], width, height)
        cut = _uniform_int(u[:, 20:22], size - out_px + 1)
        return Geometry(_whole(width, height), size, cut, _coin(u[:, 22], flip))

    return Augmentation(law, Steps(resize=True, cut=True))


def center_crop(resize_px: int, out_px: int) -> Augmentation:
    """Return validation's Resize(resize_px), unless 0, and CenterCrop(out_px), as torchvision's."""

    def law(u: Floats, width: Ints, height: Ints) -> Geometry:
        size = _shorter_side_to(resize_px, width, height)
        spare = size - out_px
        cut = np.where(spare >= 0, np.rint(spare / 2).astype(np.int64), -(-spare // 2))
        return Geometry(_whole(width, height), size, cut, np.zeros(len(width), dtype=np.int64))

    return Augmentation(law, Steps(resize=resize_px > 0, cut=True))


def ten_crop(resize_px: int, out_px: int) -> Augmentation:
    """Return Resize(resize_px), unless 0, and TenCrop(out_px), as torchvision's.

    The views are the four corners and the center, then the same of the mirrored image; the `cut` of
    a mirrored view is in the coordinates of the original image (Krizhevsky et al. 2012).
    """

    def law(u: Floats, width: Ints, height: Ints) -> Geometry:
        size = _shorter_side_to(resize_px, width, height)
        spare = size - out_px
        corners = [spare * corner for corner in ((0, 0), (1, 0), (0, 1), (1, 1))]
        plain = [*corners, np.rint(spare / 2).astype(np.int64)]
        # The left corner of the mirrored image is the right corner of the original.
        mirrored = [np.stack([spare[:, 0] - cut[:, 0], cut[:, 1]], axis=1) for cut in plain]
        cuts = np.stack(plain + mirrored, axis=1).reshape(-1, 2)
        flips = np.tile(np.repeat([0, 1], 5), len(width))
        window = _whole(width, height).repeat(10, axis=0)
        return Geometry(window, size.repeat(10, axis=0), cuts, flips)

    return Augmentation(law, Steps(resize=resize_px > 0, cut=True), views=10)


COLOR_UNITS = 255_000  # a channel's range: shifts are integers, to fit into a table of rows

# Krizhevsky et al. 2012, 4.1: principal components (columns) of ImageNet's RGB values in [0, 1], as
# printed in fb.resnet.torch, and the square roots of their variances.
_COMPONENTS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)
_SCALES = np.array([0.2175, 0.0188, 0.0045])


def pca_color(std: float) -> Callable[[Floats], Ints]:
    """Return AlexNet's color augmentation: N(0, std) times its scale along each component."""

    def color(u: Floats) -> Ints:
        radius = np.sqrt(-2 * np.log1p(-u[:, [0, 2]]))  # Box and Muller, from two pairs
        angle = 2 * np.pi * u[:, [1, 3]]
        normals = np.stack(
            [radius[:, 0] * np.cos(angle[:, 0]), radius[:, 0] * np.sin(angle[:, 0]),
             radius[:, 1] * np.cos(angle[:, 1])], axis=1,
        )  # fmt: skip
        shift = (normals * _SCALES * std) @ _COMPONENTS.T
        units: Ints = np.rint(shift * COLOR_UNITS).astype(np.int64)
        return units

    return color


def train_law(data: cfg.Data) -> Augmentation:
    """Return the augmentation of training that the config names."""
    if data.augment == "resized_crop":
        law = resized_crop(data.crop_area, data.crop_ratio, data.image_px, flip=data.flip)
    elif data.augment == "scale_jitter":
        law = scale_jitter(*data.jitter_px, data.image_px, flip=data.flip)
    elif data.augment == "pad_crop":
        law = pad_crop(data.pad_px, data.image_px, flip=data.flip)
    else:
        law = center_crop(data.eval_resize_px, data.image_px)
    return replace(law, color=pca_color(data.colour_std)) if data.colour_std else law


def eval_law(config: cfg.Config) -> Augmentation:
    """Return the crop of validation: the center, or ten views."""
    crop = ten_crop if config.eval.views == "ten_crop" else center_crop
    return crop(config.data.eval_resize_px, config.data.image_px)


def _shorter_side_to(px: Ints | int, width: Ints, height: Ints) -> Ints:
    """Return sizes [n, 2] with the shorter side at `px` ([n, 1], or for all; 0 keeps the size)."""
    size = np.stack([width, height], axis=1)
    if isinstance(px, int) and px == 0:
        return size
    # Rounded as by torchvision.
    shorter = size.min(axis=1, keepdims=True)
    return np.where(size == shorter, px, size * px // shorter)


def _uniform_int(u: Floats, bound: Ints) -> Ints:
    return np.minimum((u * bound).astype(np.int64), bound - 1)


def _coin(u: Floats, flip: bool) -> Ints:
    return ((u < 0.5) & flip).astype(np.int64)


def _whole(width: Ints, height: Ints) -> Ints:
    zero = np.zeros_like(width)
    return np.stack([zero, zero, width, height], axis=1)


def _largest_in_center(width: Ints, height: Ints, ratio: tuple[float, float]) -> tuple[Ints, Ints]:
    aspect = width / height
    w = np.where(aspect > ratio[1], np.rint(height * ratio[1]).astype(np.int64), width)
    h = np.where(aspect < ratio[0], np.rint(width / ratio[0]).astype(np.int64), height)
    return w, h
