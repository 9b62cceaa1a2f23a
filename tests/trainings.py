"""What tests of training share: a small one, set up in a world of one or of several."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from harness import config as cfg
from harness import engine
from harness.data.sets import Images, open_sets
from harness.pulse import Pulse
from harness.record.clock import Clock
from harness.resolve import Resolved, resolve
from harness.signals import Signals
from harness.train import Training, set_up
from harness.world import Ballot, World, from_environment, process_group


def make_config(folder: Path, **changes: Any) -> cfg.Config:
    sections: dict[str, Any] = {
        "run": {"name": "test"},
        "model": {"name": "resnet20"},
        "data": {"train": str(folder), "val": str(folder), "image_px": 32, "eval_resize_px": 36},
        "train": {"global_batch": 12},
        "schedule": {"epochs": 3, "decay": "cosine"},
        "eval": {"local_batch": 7},
        "engine": {"device": "cpu", "compile": False, "threads": 1, "bucket_mb": 0.1},
        "log": {"every_steps": 16},
    }
    for name, section in changes.items():
        sections[name] = sections[name] | section
    return cfg.Config(**sections)


def make_resolved(config: cfg.Config, world: World) -> tuple[Resolved, Images, Images]:
    train_set, val_set = open_sets(config)
    assert train_set is not None
    return resolve(config, world, train_set), train_set, val_set


def fresh(resolved: Resolved, classes: int = 4) -> Training:
    """A training from its beginning; `photos` has four classes."""
    net = engine.network(resolved, classes)
    return set_up(resolved, net, Clock(resolved.world.device), pulse())


def pulse() -> Pulse:
    """Votes, but nobody asks for anything."""
    return Pulse(Ballot(timeout_s=60), Signals(), None, lambda: False)


@contextmanager
def alone(config: cfg.Config) -> Iterator[tuple[Training, Resolved, Images, Images]]:
    """A training that is set up, in a world of one."""
    world = from_environment("cpu", {})
    resolved, train_set, val_set = make_resolved(config, world)
    threads = torch.get_num_threads()
    with process_group(world, 60):
        yield fresh(resolved, val_set.classes), resolved, train_set, val_set
    torch.set_num_threads(threads)


def bits(t: Training) -> str:
    """Hash of weights and momentum (not of BN's statistics, which differ between ranks)."""
    digest = hashlib.sha256()
    for parameter in t.model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
        digest.update(t.optimizer.state[parameter]["momentum_buffer"].numpy().tobytes())
    return digest.hexdigest()


def bn_bits(t: Training) -> str:
    return hashlib.sha256(
        b"".join(buffer.numpy().tobytes() for buffer in t.model.buffers())
    ).hexdigest()
