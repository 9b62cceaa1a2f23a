"""Overhead: the harness's own loop against a bare one, on synthetic images, in turns."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import nn

from harness import config as cfg
from harness import engine
from harness.bench.turns import Arm, in_turns, report
from harness.console import out
from harness.data import Batch, open_sets
from harness.pulse import Pulse
from harness.record.clock import Clock
from harness.resolve import Resolved, resolve
from harness.signals import Signals
from harness.train import Training, set_up, train_epoch
from harness.world import Ballot, from_environment, process_group


def measure(
    model: str, *, image_px: int, batch: int, steps: int, turns: int, compiled: bool
) -> float:
    """Images per second of `train.train_epoch` (all of it: DDP, counts, digests, rows) and of a
    bare loop: same network, precision and layout, tensors in memory.

    Returns:
        The ratio harness / bare, median over turns.
    """
    config = cfg.Config(
        run=cfg.Run(name="overhead"),
        model=cfg.Model(name=model),  # type: ignore[arg-type]
        data=cfg.Data(source="synthetic", image_px=image_px, synthetic_images=batch * steps),
        train=cfg.Train(global_batch=batch),
        schedule=cfg.Schedule(epochs=2 * turns + 2, decay="constant"),
        engine=cfg.Engine(compile=compiled),
        eval=cfg.Eval(local_batch=batch),
        log=cfg.Log(every_steps=steps),
    )
    world = from_environment("auto", {})
    train_set, _ = open_sets(config)
    assert train_set is not None
    resolved = resolve(config, world, train_set)
    out.print("\n".join(resolved.lines()[:5]))
    with process_group(world, timeout_s=60):
        clock = Clock(world.device)
        pulse = Pulse(Ballot(timeout_s=60), Signals(), None, lambda: False)
        t = set_up(resolved, engine.network(resolved, train_set.classes), clock, pulse)
        epochs = config.schedule.epochs
        batches = resolved.loader.train(train_set, resolved.split, epoch=0, step=0, epochs=epochs)
        images = next(batches)
        arms = [
            Arm("harness", lambda: _harness(t, batches)),
            Arm("bare loop", _Bare(resolved, images, train_set.classes, steps)),
        ]
        for arm in arms:
            arm.turn()  # not measured: first touches of memory
        return report(in_turns(arms, turns), f"training on synthetic images, {steps} steps a turn")


def _harness(t: Training, batches: Iterator[Batch]) -> float:
    with t.clock.account("train"):
        before_s, before = t.clock.train_s, t.images_seen
        for _ in train_epoch(t, batches):
            pass
        return (t.images_seen - before) / (t.clock.train_s - before_s)


class _Bare:
    """About twenty lines, as one would write them: the least that trains."""

    def __init__(self, resolved: Resolved, batch: Batch, classes: int, steps: int) -> None:
        self.model = engine.place(engine.network(resolved, classes), resolved).train()
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True
        )
        self.resolved, self.batch, self.steps = resolved, batch, steps

    def __call__(self) -> float:
        device = self.resolved.world.device
        _wait(device)
        began = time.perf_counter()
        for _ in range(self.steps):
            with engine.autocast(self.resolved):
                logits = self.model(self.batch.images)
            loss = nn.functional.cross_entropy(logits.float(), self.batch.labels)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        _wait(device)
        return len(self.batch.labels) * self.steps / (time.perf_counter() - began)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
