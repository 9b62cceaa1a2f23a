"""What tests of training share: a small one, set up in a world of one or of several."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from harness import config as cfg
from harness.data.sets import Images, open_sets
from harness.distributed import World, from_environment, process_group
from harness.monitor.clock import Clock
from harness.trainer import setup
from harness.trainer.control import StepControl, Vote
from harness.trainer.loop import Training, set_up
from harness.trainer.resolve import Resolved, resolve


def here(environ: Mapping[str, str] = os.environ) -> World:
    """This process's place, on what the test computes on; several ranks share a GPU."""
    several = int(environ.get("WORLD_SIZE", 1)) > 1
    return from_environment("auto", environ, "gloo" if several else "auto")


def make_config(folder: Path, **changes: Any) -> cfg.Config:
    """Of a small training; on a GPU its bits are the same each time."""
    sections: dict[str, Any] = {
        "run": {"name": "test"},
        "model": {"name": "resnet20"},
        "data": {"train": str(folder), "val": str(folder), "image_px": 32, "eval_resize_px": 36,
                 "decode": "cpu"},
        "train": {"global_batch": 12},
        "schedule": {"epochs": 3, "decay": "cosine"},
        "eval": {"local_batch": 7},
        "engine": {"compile": False, "threads": 1, "bucket_mb": 0.1,
                   "deterministic": torch.cuda.is_available()},
        "log": {"every_steps": 16},
    }  # fmt: skip
    for name, section in changes.items():
        sections[name] = sections[name] | section
    return cfg.Config(**sections)


def make_resolved(config: cfg.Config, world: World) -> tuple[Resolved, Images, Images]:
    train_set, val_set = open_sets(config)
    assert train_set is not None
    return resolve(config, world, train_set), train_set, val_set


def fresh(resolved: Resolved, classes: int = 4) -> Training:
    """A training from its beginning; `photos` has four classes."""
    net = setup.network(resolved, classes)
    return set_up(resolved, net, Clock(resolved.world.device), control())


def control() -> StepControl:
    """Votes, but nobody asks for anything."""
    return StepControl(Vote(timeout_s=60))


@contextmanager
def alone(config: cfg.Config) -> Iterator[tuple[Training, Resolved, Images, Images]]:
    """A training that is set up, in a world of one."""
    world = here({})
    resolved, train_set, val_set = make_resolved(config, world)
    threads = torch.get_num_threads()
    with process_group(world, 60):
        yield fresh(resolved, val_set.classes), resolved, train_set, val_set
    torch.set_num_threads(threads)


def bits(t: Training) -> str:
    """Hash of weights and momentum (not of BN's statistics, which differ between ranks)."""
    digest = hashlib.sha256()
    for parameter in t.model.parameters():
        digest.update(parameter.detach().cpu().numpy().tobytes())
        digest.update(t.optimizer.state[parameter]["momentum_buffer"].cpu().numpy().tobytes())
    return digest.hexdigest()


def bn_bits(t: Training) -> str:
    return hashlib.sha256(
        b"".join(buffer.cpu().numpy().tobytes() for buffer in t.model.buffers())
    ).hexdigest()
