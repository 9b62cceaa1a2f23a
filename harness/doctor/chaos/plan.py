"""Plan the runs of a trial: check the command and settle its config before a process starts."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import harness
from harness.config import Config, load
from harness.config.rules import compiles
from harness.data.sets import open_sets
from harness.distributed import from_environment
from harness.errors import BadInput
from harness.models.zoo import MODELS
from harness.trainer import setup
from harness.trainer.resolve import Resolved, resolve

TRAIN = Path(harness.__file__).parent.parent / "launch" / "train.py"
RANKS_ON_CPU = 3  # two would hide a change in the order of sums: a + b is b + a
LOG_EVERY, SAVE_EVERY = 3, 2  # coprime: checkpoints fall at every position within the log periods
RESERVED_FLAGS = {
    "--run.root": "; give --keep DIR",
    "--schedule.max-steps": "; give --steps",
    **dict.fromkeys(("--run.name", "--run.mode", "--run.restart", "--run.dry-run"), ""),
}


@dataclass(frozen=True)
class Plan:
    """The command of the trial's runs, which differ only in their names."""

    args: list[str]  # arguments of launch/train.py
    resolved: Resolved  # as the last rank resolves it
    folder: Path  # for the run folders
    notes: list[str]

    @property
    def ranks(self) -> int:
        """The number of ranks."""
        return self.resolved.world.size

    @property
    def save_every(self) -> int:
        """Steps from one checkpoint to the next."""
        every, epoch = self.resolved.config.checkpoint.every_steps, self.resolved.steps_per_epoch
        return min(every, epoch) if every else epoch

    def command(self, name: str) -> list[str]:
        """Return the command that starts the run of this name, or resumes it."""
        # With an address, as the host's own name need not resolve.
        launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
        script = [f"--nproc-per-node={self.ranks}", str(TRAIN), *self.args, "--run.name", name]
        return [sys.executable, *launcher, *script]


def make(args: Sequence[str], *, ranks: int | None, steps: int, folder: Path) -> Plan:
    """Return the plan of a trial, after all checks that starting a run would do.

    Frequent checkpoints and small buckets make the trial a hard one.

    Args:
        args: [CONFIG.yaml] [--section.key value ...], as launch/train.py takes them.
        ranks: by default one per GPU, or three on the CPU.

    Raises:
        BadInput: the arguments, the data or the machine do not allow training.
    """
    if not TRAIN.exists():
        raise BadInput(f"{TRAIN}: does not exist; run harness doctor from a checkout")
    given = {arg.split("=")[0] for arg in args if arg.startswith("--")}
    if reserved := sorted(RESERVED_FLAGS.keys() & given):
        do = RESERVED_FLAGS[reserved[0]]
        raise BadInput(f"{reserved[0]}: harness doctor resume sets it by itself{do}")
    requested = load.load(args, prog="harness doctor resume")
    if requested.run.mode == "eval":
        raise BadInput("run.mode: eval trains no step that could be lost; give a training config")
    on_gpu = requested.engine.device != "cpu" and torch.cuda.is_available()
    ranks = ranks or (torch.cuda.device_count() if on_gpu else RANKS_ON_CPU)
    flags = _flags(requested, ranks, on_gpu=on_gpu)
    flags = {flag: text for flag, text in flags.items() if flag not in given}
    flags |= {"--run.root": str(folder), "--run.dry-run": "false", "--run.restart": "false"}
    flags |= {"--schedule.max-steps": str(steps)}
    all_args = [*args, *(arg for flag in flags.items() for arg in flag)]
    config = load.load([*all_args, "--run.name", "plan"], prog="harness doctor resume")
    batch, rounded = requested.train.global_batch, config.train.global_batch
    note = f"train.global_batch {rounded}: {batch} does not divide over {ranks} ranks"
    return Plan(all_args, _resolved(config, ranks), folder, [note] if rounded != batch else [])


def _flags(requested: Config, ranks: int, *, on_gpu: bool) -> dict[str, str]:
    engine, batch = requested.engine, requested.train.global_batch
    # Small networks get small buckets: the order of sums over several buckets must survive.
    cap = 0.05 if MODELS[requested.model.name].cifar else 2.0
    floor = 1.0 if compiles(engine, on_gpu=on_gpu) else 0.0
    flags = {
        "--log.wandb": "offline",
        "--log.every-steps": str(LOG_EVERY),
        "--checkpoint.every-steps": str(SAVE_EVERY),
        "--engine.bucket-mb": str(max(min(engine.bucket_mb, cap), floor)),
        "--train.global-batch": str(max(batch // ranks, 1) * ranks),
    }
    if on_gpu:
        flags["--engine.deterministic"] = "true"
        if requested.data.decode == "auto":
            flags["--data.decode"] = "cpu"  # nvJPEG spreads images over decoders that differ
    return flags


def _resolved(config: Config, ranks: int) -> Resolved:
    """Resolve the config as the last rank would; checks data, weights, devices and batch sizes."""
    last, size = str(ranks - 1), str(ranks)
    environ = {"RANK": last, "LOCAL_RANK": last, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # nothing is opened
    world = from_environment(config.engine.device, environ, config.engine.backend)
    train_set, val_set = open_sets(config)
    resolved = resolve(config, world, train_set)
    setup.network(resolved, val_set.classes)
    return resolved
