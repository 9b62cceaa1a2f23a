"""What tests share: images that they draw, commands as a user types them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ranks import Job, python

ROOT = Path(__file__).parents[2]
TRAIN = str(ROOT / "launch" / "train.py")
TINY = [
    *("--model.name", "resnet20", "--data.image-px", "32", "--data.eval-resize-px", "32"),
    *("--schedule.epochs", "1", "--log.wandb", "off", "--engine.compile", "false"),
    *("--engine.threads", "1", "--data.threads", "1", "--data.decode", "cpu"),
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
    *flags: str | Path,
    ranks: int = 1,
    cwd: Path | None = None,
    timeout_s: float = 240,
    launched: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run launch/train.py alone or in several ranks.

    Args:
        launched: as a user does, with a new Python and torchrun: seconds more.
    """
    command = [TRAIN, *on_gpu(), *map(str, flags)]
    if not launched:
        return python(*command, ranks=ranks, cwd=cwd, timeout_s=timeout_s)
    command = [*launcher(ranks), *command]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout_s)


def launcher(ranks: int) -> list[str]:
    """What stands before the script: Python alone, or torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [sys.executable, *(torchrun if ranks > 1 else [])]


def on_gpu() -> list[str]:
    """Flags with which ranks share a GPU and have the same bits each time; none on a CPU."""
    if not torch.cuda.is_available():
        return []
    return ["--engine.deterministic", "true", "--engine.backend", "gloo"]


def see_gpus(patch: pytest.MonkeyPatch, count: int) -> None:
    """Let this process believe that torch sees so many GPUs, or none."""
    patch.setattr(torch.cuda, "is_available", lambda: count > 0)
    patch.setattr(torch.cuda, "device_count", lambda: count)


def wait_for_rows(folder: Path, job: subprocess.Popen[str] | Job, rows: int = 1) -> None:
    """Return once the run has so many rows, or has ended."""
    file = folder / "rows.jsonl"
    while job.poll() is None and not (file.exists() and file.read_bytes().count(b"\n") >= rows):
        time.sleep(0.05)


def children(job: subprocess.Popen[str]) -> list[int]:
    """Processes that a job has started: of torchrun the ranks, in their order."""
    return [
        int(pid) for pid in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    ]


@contextmanager
def small_disk(where: Path, size: str) -> Iterator[Path]:
    """A file system of so many bytes, such as `2m`; skips the test where none may be mounted."""
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(where)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("may not mount a tmpfs here")
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


def icons_flags(icons: Path) -> list[str]:
    """Flags of the run `icons-s0` on the fixture `icons`."""
    return [
        *TINY,
        *("--run.name", "icons-s0", "--data.train", str(icons), "--data.val", str(icons)),
        *("--data.augment", "pad_crop", "--train.global-batch", "10", "--eval.local-batch", "16"),
    ]
