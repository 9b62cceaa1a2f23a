"""What tests share: images that they draw, commands as a user types them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
TRAIN = str(ROOT / "launch" / "train.py")
TINY = [
    *("--model.name", "resnet20", "--data.image-px", "32", "--data.eval-resize-px", "32"),
    *("--schedule.epochs", "1", "--log.wandb", "off", "--engine.compile", "false"),
    *("--engine.threads", "1", "--data.threads", "1"),
]
"""Flags of a run that takes a few seconds."""


def draw_tree(
    root: Path, *, classes: int, per_class: int, size: Callable[[int], tuple[int, int]], suffix: str
) -> Path:
    """A folder tree of images with smooth random content, the k-th of the given (width, height)."""
    rng = np.random.default_rng(classes * 1000 + per_class)
    for number in range(classes * per_class):
        folder = root / f"class{number % classes}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize(size(number), Image.Resampling.BICUBIC)
        image.save(folder / f"{number:04d}{suffix}", quality=92)
    return root


def train(
    *flags: str | Path, ranks: int = 1, cwd: Path | None = None, timeout_s: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run launch/train.py as a user does: alone, or with several ranks under torchrun."""
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [*launcher, TRAIN, *map(str, flags)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout_s)


def icons_flags(icons: Path) -> list[str]:
    """Flags of the run `icons-s0` on the fixture `icons`."""
    return [
        *TINY,
        *("--run.name", "icons-s0", "--data.train", str(icons), "--data.val", str(icons)),
        *("--data.augment", "pad_crop", "--train.global-batch", "10", "--eval.local-batch", "16"),
    ]
