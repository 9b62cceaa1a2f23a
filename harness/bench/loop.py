"""The training loop made ready as a run makes it, on synthetic images, to be measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from harness import config as cfg
from harness.data.batch import Batch
from harness.data.sets import Images, open_sets
from harness.distributed import World, from_environment, process_group
from harness.system import compilers
from harness.system.console import out, wide
from harness.trainer.resolve import Resolved, resolve

TIMEOUT_S = 600.0
"""For a rank that compiles longer than the others."""


@dataclass(frozen=True)
class Work:
    """What each turn trains: one epoch of so many steps."""

    model: str
    image_px: int
    batch: int  # images per rank and step
    steps: int  # per turn
    turns: int
    compiled: bool
    threads: int  # for computing, per rank; 0: its cores

    def config(self, world: World, **sections: cfg.Section) -> cfg.Config:
        """Of a run that is long enough: each turn, and one before them, of two arms or three.

        Args:
            sections: those that are not to be their defaults.
        """
        global_batch = self.batch * world.size
        plain: dict[str, Any] = {
            "run": cfg.Run(name="bench"),
            "model": cfg.Model(name=self.model),  # type: ignore[arg-type]
            "data": cfg.Data(
                source="synthetic",
                image_px=self.image_px,
                synthetic_images=global_batch * self.steps,
            ),
            "train": cfg.Train(global_batch=global_batch),
            "schedule": cfg.Schedule(epochs=3 * (self.turns + 1), decay="constant"),
            "engine": cfg.Engine(compile=self.compiled, threads=self.threads),
            "eval": cfg.Eval(local_batch=self.batch),
            "log": cfg.Log(every_steps=self.steps, wandb="off"),
        }
        return cfg.Config(**plain | sections)


@dataclass(frozen=True)
class Opened:
    """A run before its first step, in an open process group."""

    resolved: Resolved
    train_set: Images
    val_set: Images
    batches: Iterator[Batch]


def world_of_bench(backend: str = "auto") -> World:
    """From torchrun's environment, or a world of one; only rank 0 prints from here on.

    Raises:
        BadInput: as World's.
    """
    world = from_environment("auto", backend=backend)
    out.quiet = wide.quiet = not world.is_main
    return world


@contextmanager
def opened(config: cfg.Config, world: World) -> Iterator[Opened]:
    """Sets, batches and process group of a run; prints what it will be.

    Raises:
        BadInput: as resolve's, or nothing can be compiled here.
    """
    train_set, val_set = open_sets(config)
    assert train_set is not None
    resolved = resolve(config, world, train_set)
    if resolved.compiled:
        compilers.require(on_gpu=world.on_gpu)
    out.print("\n".join(resolved.lines()[:5]))
    epochs = config.schedule.epochs
    batches = resolved.loader.train(train_set, resolved.split, epoch=0, step=0, epochs=epochs)
    with process_group(world, TIMEOUT_S):
        yield Opened(resolved, train_set, val_set, batches)


def wait_for(device: torch.device) -> None:
    """Return once all that was asked of a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
