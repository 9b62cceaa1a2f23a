"""Plan: the command of a trial, found good before any process is started."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import harness
from harness import config as cfg
from harness.config import load
from harness.config.rules import compiles
from harness.data.sets import open_sets
from harness.distributed import from_environment
from harness.errors import BadInput
from harness.trainer import setup
from harness.trainer.resolve import Resolved, resolve

TRAIN = Path(harness.__file__).parent.parent / "launch" / "train.py"
RANKS_ON_CPU = 3
"""Two ranks would hide it if sums were taken in another order: a + b is b + a."""
LOG_EVERY, SAVE_EVERY = 3, 2
"""Steps; prime to each other, so that checkpoints fall everywhere within log periods."""

SET_HERE = {
    "--run.root": "; give --keep DIR",
    "--run.name": "",
    "--run.mode": "",
    "--run.restart": "",
    "--run.dry-run": "",
    "--schedule.max-steps": "; give --steps",
}


@dataclass(frozen=True)
class Plan:
    """What is run, as often as needed, under several names in one folder."""

    words: list[str]  # for launch/train.py
    resolved: Resolved  # as the last rank sees it
    folder: Path
    notes: list[str]

    @property
    def ranks(self) -> int:
        """Processes that train."""
        return self.resolved.world.size

    @property
    def steps(self) -> int:
        """Length of each run."""
        return self.resolved.total_steps

    @property
    def exact(self) -> bool:
        """Whether equal bits are promised."""
        return not self.resolved.world.on_gpu or self.resolved.config.engine.deterministic

    @property
    def save_every(self) -> int:
        """Steps from checkpoint to checkpoint."""
        every, epoch = self.resolved.config.checkpoint.every_steps, self.resolved.steps_per_epoch
        return min(every, epoch) if every else epoch

    def command(self, name: str) -> list[str]:
        """The start of the run of this name: for the first time, and to go on with it."""
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.ranks}"]
        return [sys.executable, *launcher, str(TRAIN), *self.words, "--run.name", name]


def make(words: Sequence[str], *, ranks: int | None, steps: int, folder: Path) -> Plan:
    """Check all that a start would check, and settle what makes the trial a hard one.

    Args:
        words: [CONFIG.yaml] [--section.key value ...], as launch/train.py takes them.
        ranks: by default one per GPU, or three on the CPU.
        folder: for the run folders.

    Raises:
        BadInput: these words, that data or this machine cannot train.
    """
    if not TRAIN.exists():
        raise BadInput(f"{TRAIN}: not there; run harness doctor from a checkout")
    given = {word.split("=")[0] for word in words if word.startswith("--")}
    if mine := sorted(SET_HERE.keys() & given):
        raise BadInput(f"{mine[0]}: harness doctor resume sets it by itself{SET_HERE[mine[0]]}")
    asked = load.load(words, prog="harness doctor resume")
    if asked.run.mode == "eval":
        raise BadInput("run.mode: eval trains no step that could be lost; give a training config")
    on_gpu = asked.engine.device != "cpu" and torch.cuda.is_available()
    ranks = ranks or (torch.cuda.device_count() if on_gpu else RANKS_ON_CPU)
    flags = _flags(asked, ranks, compiled=compiles(asked.engine, on_gpu=on_gpu))
    flags = {flag: text for flag, text in flags.items() if flag not in given}
    if on_gpu and "--engine.deterministic" not in given:
        flags["--engine.deterministic"] = "true"
    if on_gpu and asked.data.decode == "auto" and "--data.decode" not in given:
        # nvJPEG shares images out among decoders that do not give the same pixels.
        flags["--data.decode"] = "cpu"
    flags |= {"--run.root": str(folder), "--run.dry-run": "false", "--run.restart": "false"}
    flags |= {"--schedule.max-steps": str(steps)}
    all_words = [*words, *(word for flag in flags.items() for word in flag)]
    config = load.load([*all_words, "--run.name", "plan"], prog="harness doctor resume")
    notes = []
    if config.train.global_batch != asked.train.global_batch:
        notes.append(
            f"train.global_batch {config.train.global_batch}: "
            f"{asked.train.global_batch} does not divide over {ranks} ranks"
        )
    return Plan(all_words, _resolved(config, ranks), folder, notes)


def _flags(asked: cfg.Config, ranks: int, *, compiled: bool) -> dict[str, str]:
    """What is set for the trial unless the command says otherwise."""
    batch = asked.train.global_batch
    # Several buckets, as the order of their sums must survive: small ones for small networks.
    small = 0.05 if asked.model.name in cfg.CIFAR_MODELS else 2.0
    least = 1.0 if compiled else 0.0
    bucket_mb = max(min(asked.engine.bucket_mb, small), least)
    return {
        "--log.wandb": "offline",
        "--log.every-steps": str(LOG_EVERY),
        "--checkpoint.every-steps": str(SAVE_EVERY),
        "--engine.bucket-mb": str(bucket_mb),
        "--train.global-batch": str(max(batch // ranks, 1) * ranks),
    }


def _resolved(config: cfg.Config, ranks: int) -> Resolved:
    """What the last rank would find: data, weights and devices are there, batches divide."""
    last = {"RANK": ranks - 1, "LOCAL_RANK": ranks - 1,
            "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}  # fmt: skip
    environ = {key: str(n) for key, n in last.items()}
    world = from_environment(config.engine.device, environ, config.engine.backend)
    train_set, val_set = open_sets(config)
    resolved = resolve(config, world, train_set)
    setup.network(resolved, val_set.classes)
    return resolved
