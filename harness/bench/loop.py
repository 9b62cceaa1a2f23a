"""Set up the training loop as a run does, for benchmarks to measure."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from harness import config as cfg
from harness.data.batch import Batch
from harness.data.sets import Images, open_sets
from harness.distributed import World, from_environment, process_group
from harness.monitor.clock import Clock
from harness.system import compilers
from harness.system.console import out, wide
from harness.trainer import setup
from harness.trainer.control import StepControl, Vote
from harness.trainer.loop import Training, set_up
from harness.trainer.resolve import Resolved, resolve

TIMEOUT_S = 600.0
"""Time limit of collectives: one rank may compile longer than the others."""


@dataclass(frozen=True)
class Work:
    """What each turn trains: one epoch on synthetic images."""

    model: str
    image_px: int
    batch: int  # images per rank and step
    steps: int  # per turn
    turns: int  # at most
    threads: int  # per rank, for computing; 0: one per core
    compiled: bool

    def config(self, world: World, **sections: cfg.Section) -> cfg.Config:
        """Return a config with enough epochs for 3 times all turns; `sections` replace its own."""
        global_batch = self.batch * world.size
        images = global_batch * self.steps
        plain: dict[str, Any] = {
            "run": cfg.Run(name="bench"),
            "model": cfg.Model(name=self.model),  # type: ignore[arg-type]
            "data": cfg.Data(source="synthetic", image_px=self.image_px, synthetic_images=images),
            "train": cfg.Train(global_batch=global_batch),
            "schedule": cfg.Schedule(epochs=3 * (self.turns + 1), decay="constant"),
            "engine": cfg.Engine(compile=self.compiled, threads=self.threads),
            "eval": cfg.Eval(local_batch=self.batch),
            "log": cfg.Log(every_steps=self.steps, wandb="off"),
        }
        return cfg.Config(**plain | sections)


@dataclass(frozen=True)
class Opened:
    """A run before its first step, while its process group is open."""

    t: Training
    train_set: Images
    val_set: Images

    @property
    def resolved(self) -> Resolved:
        """The run's resolved config."""
        return self.t.resolved

    def batches(self) -> Iterator[Batch]:
        """Yield the training batches of all epochs, from the first one on."""
        r, epochs = self.resolved, self.resolved.config.schedule.epochs
        return r.loader.train(self.train_set, r.split, epoch=0, step=0, epochs=epochs)


def world_of_bench(backend: str = "auto") -> World:
    """Return the World of torchrun's environment, or of one rank; only rank 0 prints afterwards.

    Raises:
        BadInput: as from_environment does.
    """
    world = from_environment("auto", backend=backend)
    out.quiet = wide.quiet = not world.is_main
    return world


@contextmanager
def opened(config: cfg.Config, world: World) -> Iterator[Opened]:
    """Open the data and the process group of a run, print its first lines, set the training up.

    Raises:
        BadInput: as resolve does, or this machine has no compiler.
    """
    train_set, val_set = open_sets(config)
    assert train_set is not None
    resolved = resolve(config, world, train_set)
    if resolved.compiled:
        compilers.require(on_gpu=world.on_gpu)
    out.print("\n".join(resolved.lines()[:5]))
    with process_group(world, TIMEOUT_S):
        vote = Vote(TIMEOUT_S)
        net = setup.network(resolved, train_set.classes)
        t = set_up(resolved, net, Clock(world.device), StepControl(vote))
        yield Opened(t, train_set, val_set)
        vote.close()  # after an error other ranks may never answer


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
