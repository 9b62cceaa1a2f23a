"""The demo set: small learnable JPEGs, drawn: ten shapes of random color and size on noise."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from harness.system.folders import new_folder
from harness.system.progress import track

TRAIN_IMAGES, VAL_IMAGES = 4000, 1000
_SEED = 20151210  # the day on which He et al. appeared

Box = tuple[float, float, float, float]
Color = tuple[int, int, int]
Painter = Callable[[ImageDraw.ImageDraw, Box, Color], None]


def _at(box: Box, px: float, py: float) -> tuple[float, float]:
    """Return a point that is given in units of the box."""
    x, y, w, h = box[0], box[1], box[2] - box[0], box[3] - box[1]
    return x + px * w, y + py * h


def _polygon(*points: tuple[float, float]) -> Painter:
    return lambda draw, box, color: draw.polygon([_at(box, *p) for p in points], fill=color)


def _bars(*, upright: bool) -> Painter:
    def paint(draw: ImageDraw.ImageDraw, box: Box, color: Color) -> None:
        for start in (0.0, 0.4, 0.8):
            corners = ((start, 0), (start + 0.2, 1)) if upright else ((0, start), (1, start + 0.2))
            draw.rectangle([_at(box, *corner) for corner in corners], fill=color)

    return paint


def _dots(draw: ImageDraw.ImageDraw, box: Box, color: Color) -> None:
    for px, py in ((0, 0), (0.65, 0), (0, 0.65), (0.65, 0.65)):
        draw.ellipse([_at(box, px, py), _at(box, px + 0.35, py + 0.35)], fill=color)


def _line_px(box: Box) -> int:
    return max(2, int((box[2] - box[0]) / 6))


_THIRD, _TWO_THIRDS = 1 / 3, 2 / 3
CLASSES: dict[str, Painter] = {
    "bars": _bars(upright=False),
    "columns": _bars(upright=True),
    "cross": _polygon(
        (_THIRD, 0), (_TWO_THIRDS, 0), (_TWO_THIRDS, _THIRD), (1, _THIRD), (1, _TWO_THIRDS),
        (_TWO_THIRDS, _TWO_THIRDS), (_TWO_THIRDS, 1), (_THIRD, 1), (_THIRD, _TWO_THIRDS),
        (0, _TWO_THIRDS), (0, _THIRD), (_THIRD, _THIRD),
    ),
    "diamond": _polygon((0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)),
    "disc": lambda draw, box, color: draw.ellipse(box, fill=color),
    "dots": _dots,
    "frame": lambda draw, box, color: draw.rectangle(box, outline=color, width=_line_px(box)),
    "ring": lambda draw, box, color: draw.ellipse(box, outline=color, width=_line_px(box)),
    "square": _polygon((0, 0), (1, 0), (1, 1), (0, 1)),
    "triangle": _polygon((0.5, 0), (1, 1), (0, 1)),
}  # fmt: skip


def draw(root: Path) -> None:
    """Draw the demo set: `train` and `val`, ten class folders each, sizes 48 to 160 px.

    The pixels are the same on every machine. If drawing fails, no partial folder is left.

    Raises:
        BadInput: the folder exists already, or cannot be written.
    """
    todo = [("train", i) for i in range(TRAIN_IMAGES)] + [("val", i) for i in range(VAL_IMAGES)]
    with new_folder(root) as part:
        for split in ("train", "val"):
            for name in CLASSES:
                (part / split / name).mkdir(parents=True)
        for split, number in track(todo, total=len(todo), what=f"drawing {root}"):
            _draw_one(part / split, split, number)


def _draw_one(folder: Path, split: str, number: int) -> None:
    key = np.array([_SEED, number << 1 | (split == "val")], dtype=np.uint64)
    u = np.random.Generator(np.random.Philox(key=key))
    width, height = 48 + np.floor(u.random(2) * 113).astype(int)
    name = list(CLASSES)[number % len(CLASSES)]
    background, color = _two_colors(u.random(6))
    grain = (u.random((height, width, 1)) - 0.5) * 60
    image = Image.fromarray(np.clip(background + grain, 0, 255).astype(np.uint8))
    side = (0.5 + 0.4 * u.random()) * min(width, height)
    x, y = u.random(2) * (width - side, height - side)
    CLASSES[name](ImageDraw.Draw(image), (x, y, x + side, y + side), color)
    image.save(folder / name / f"{number:05d}.jpg", quality=90)


def _two_colors(u: np.ndarray) -> tuple[np.ndarray, Color]:
    """Return a background color and a shape color that are clearly different."""
    background = 40 + 175 * u[:3]
    shift = np.where(background > 127, -1, 1) * (70 + 50 * u[3:])
    red, green, blue = (int(c) for c in np.clip(background + shift, 0, 255))
    return background, (red, green, blue)
