"""Laws of augmentation: from uniform numbers and an image's size to its geometry. Pure functions.

Which pixels are cut out, to what size they are resized, where the output is cut, and whether it is
mirrored; the stream draws the numbers, the loaders do what the geometry says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

WORDS = 24
"""Uniform numbers of one sample: ten tries of (area, ratio), position x and y, flip, one spare."""
_TRIES = 10


@dataclass(frozen=True)
class Geometry:
    """Windows, sizes, cuts and flips of n images."""

    window: Ints
    resized: Ints
    cut: Ints
    flip: Ints


@dataclass(frozen=True)
class Steps:
    """Which steps the images need under a law of augmentation."""

    window: bool = False  # decode a window only, else the whole image
    resize: bool = False
    cut: bool = False  # cut the output's square out of it, padding where it leaves the image


@dataclass(frozen=True)
class Law:
    """A law of augmentation: (uniform words [n, 24], widths [n], heights [n]) -> Geometry.

    Attributes:
        views: how often each image is shown; its geometries follow one another.
        colour: (uniform words [n, 4]) -> what is added to R, G, B [n, 3], if anything is.
    """

    of: Callable[[Floats, Ints, Ints], Geometry]
    steps: Steps
    views: int = 1
    colour: Callable[[Floats], Ints] | None = None


def resized_crop(
    area: tuple[float, float], ratio: tuple[float, float], out_px: int, *, flip: bool
) -> Law:
    """torchvision's RandomResizedCrop: ten tries of (area, log ratio), else the centre."""

    def law(u: Floats, width: Ints, height: Ints) -> Geometry:
        tries = u[:, : 2 * _TRIES].reshape(-1, _TRIES, 2)
        wanted = (width * height)[:, None] * (area[0] + (area[1] - area[0]) * tries[..., 0])
        low, high = np.log(ratio[0]), np.log(ratio[1])
        aspect = np.exp(low + (high - low) * tries[..., 1])
        w = np.rint(np.sqrt(wanted * aspect)).astype(np.int64)
        h = np.rint(np.sqrt(wanted / aspect)).astype(np.int64)
        fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
        first = np.argmax(fits, axis=1)
        each = np.arange(len(u))
        w_fallback, h_fallback = _widest(width, height, ratio)
        found = fits[each, first]
        w = np.where(found, w[each, first], w_fallback)
        h = np.where(found, h[each, first], h_fallback)
        x = np.where(found, _uniform_int(u[:, 20], width - w + 1), (width - w) // 2)
        y = np.where(found, _uniform_int(u[:, 21], height - h + 1), (height - h) // 2)
        side = np.full((len(u), 2), out_px, dtype=np.int64)
        window = np.stack([x, y, w, h], axis=1)
        return Geometry(window, side, np.zeros_like(side), _coin(u[:, 22], flip))

    return Law(law, Steps(window=True, resize=True))


def pad_crop(pad_px: int, out_px: int, *, flip: bool) -> Law:
    """The CIFAR papers' law: zeros around the image, then a random square (He et al. 2015, 4.2)."""

    def law(u: Floats, width: Ints, height: Ints) -> Geometry:
        x = _uniform_int(u[:, 20], width + 2 * pad_px - out_px + 1) - pad_px
        y = _uniform_int(u[:, 21], height + 2 * pad_px - out_px + 1) - pad_px
        size = np.stack([width, height], axis=1)
        cut = np.stack([x, y], axis=1)
        return Geometry(_whole(width, height), size, cut, _coin(u[:, 22], flip))

    return Law(law, Steps(cut=True))


def scale_jitter(least_px: int, most_px: int, out_px: int, *, flip: bool) -> Law:
    """Shorter side to a random length, then a random square (He et al. 2015, 3.4)."""

    def law(u: Floats, width: Ints, height: Ints) -> Geometry:
        shorter = least_px + _uniform_int(u[:, 0], np.full(len(u), most_px - least_px + 1))
        size = _shorter_side_to(shorter[:, None], width, height)
        cut = np.stack(
            [_uniform_int(u[:, 20 + i], size[:, i] - out_px + 1) for i in (0, 1)], axis=1
        )
        return Geometry(_whole(width, height), size, cut, _coin(u[:, 22], flip))

    return Law(law, Steps(resize=True, cut=True))


def centre_crop(resize_px: int, out_px: int) -> Law:
    """torchvision's Resize(resize_px), unless 0, then CenterCrop(out_px): validation."""

    def law(u: Floats, width: Ints, height: Ints) -> Geometry:
        size = _resized(resize_px, width, height)
        spare = size - out_px
        cut = np.where(spare >= 0, np.rint(spare / 2).astype(np.int64), -(-spare // 2))
        return Geometry(_whole(width, height), size, cut, np.zeros(len(width), dtype=np.int64))

    return Law(law, Steps(resize=resize_px > 0, cut=True))


def ten_crop(resize_px: int, out_px: int) -> Law:
    """torchvision's Resize(resize_px), unless 0, then TenCrop(out_px) (Krizhevsky et al. 2012).

    Corners and centre, then the same mirrored; the cut of a mirrored view is where it lies in the
    image that is not.
    """

    def law(u: Floats, width: Ints, height: Ints) -> Geometry:
        size = _resized(resize_px, width, height)
        spare = size - out_px
        zero, centre = np.zeros_like(spare), np.rint(spare / 2).astype(np.int64)
        corners = [zero, np.stack([spare[:, 0], zero[:, 1]], axis=1),
                   np.stack([zero[:, 0], spare[:, 1]], axis=1), spare]  # fmt: skip
        # A mirrored image's left corner is the right one, seen in the mirror.
        seen = [*corners, centre]
        mirrored = [np.stack([spare[:, 0] - cut[:, 0], cut[:, 1]], axis=1) for cut in seen]
        cuts = np.stack(seen + mirrored, axis=1).reshape(-1, 2)
        flips = np.tile(np.repeat([0, 1], 5), len(width))
        whole = _whole(width, height).repeat(10, axis=0)
        return Geometry(whole, size.repeat(10, axis=0), cuts, flips)

    return Law(law, Steps(resize=resize_px > 0, cut=True), views=10)


COLOUR_UNITS = 255_000
"""Whole numbers, so that they travel in the table and the digest holds them."""

# Krizhevsky et al. 2012, 4.1: principal components of ImageNet's RGB values in [0, 1], as
# fb.resnet.torch prints them (columns), and the square roots of their variances.
_COMPONENTS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)
_SCALES = np.array([0.2175, 0.0188, 0.0045])


def pca_colour(std: float) -> Callable[[Floats], Ints]:
    """AlexNet's colour augmentation: along each component, a normal times `std` times its scale."""

    def colour(u: Floats) -> Ints:
        radius = np.sqrt(-2 * np.log1p(-u[:, [0, 2]]))  # Box and Muller, from two pairs
        angle = 2 * np.pi * u[:, [1, 3]]
        normals = np.stack(
            [radius[:, 0] * np.cos(angle[:, 0]), radius[:, 0] * np.sin(angle[:, 0]),
             radius[:, 1] * np.cos(angle[:, 1])], axis=1,
        )  # fmt: skip
        shift = (normals * _SCALES * std) @ _COMPONENTS.T
        whole: Ints = np.rint(shift * COLOUR_UNITS).astype(np.int64)
        return whole

    return colour


def _resized(resize_px: int, width: Ints, height: Ints) -> Ints:
    if not resize_px:
        return np.stack([width, height], axis=1)
    return _shorter_side_to(np.full((len(width), 1), resize_px), width, height)


def _shorter_side_to(px: Ints, width: Ints, height: Ints) -> Ints:
    """Sizes [n, 2] with the shorter side at `px` [n, 1] and the ratio kept, as torchvision does."""
    size = np.stack([width, height], axis=1)
    shorter = size.min(axis=1, keepdims=True)
    resized: Ints = np.where(size == shorter, px, size * px // shorter)
    return resized


def _uniform_int(u: Floats, bound: Ints) -> Ints:
    return np.minimum((u * bound).astype(np.int64), bound - 1)


def _coin(u: Floats, flip: bool) -> Ints:
    return ((u < 0.5) & flip).astype(np.int64)


def _whole(width: Ints, height: Ints) -> Ints:
    zero = np.zeros_like(width)
    return np.stack([zero, zero, width, height], axis=1)


def _widest(width: Ints, height: Ints, ratio: tuple[float, float]) -> tuple[Ints, Ints]:
    aspect = width / height
    w = np.where(aspect > ratio[1], np.rint(height * ratio[1]).astype(np.int64), width)
    h = np.where(aspect < ratio[0], np.rint(width / ratio[0]).astype(np.int64), height)
    return w, h
