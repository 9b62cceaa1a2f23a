"""The verb `harness bench`: measure the loop, the loader, the parts of a step, and scaling."""

import os
import shlex
import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from typer import Argument, BadParameter, Context, Option

from harness.commands.parser import group, positive, verb
from harness.errors import BadInput
from harness.system.process import rank_cores

if TYPE_CHECKING:
    from harness.bench.sweep.variant import Variant
    from harness.config import Config

LADDER = """\
The parts of a training step: reading, decoding, the loader, forward, backward, optimizer, sums
over ranks, first alone and then together, each with the limit of this machine. The last lines say
which part limits the speed and what to change first. Takes the arguments of launch/train.py:

  harness bench ladder                                        the quickstart
  harness bench ladder configs/resnet50_90ep.yaml --data.train DIR --data.val DIR
  torchrun --nproc-per-node 8 -m harness bench ladder ...     all GPUs of a node
  sbatch slurm/bench.sh ...                                   of several nodes

No run is written; ladder.json and ladder.html are written to --out."""

DATA = """\
Loads and decodes random training crops; nothing is trained. The harness reads each DIR; DALI's own
reader, torchvision's ImageFolder and decoding alone read the last DIR that is a folder tree.

  harness bench data /data/imagenet/train                     a folder tree
  harness bench data shards/train shards-256/train tree/train   shards too
  harness bench data --cold shards/train                      from the disk"""

SWEEP = """\
Compares the given config with variants that change one setting each. Both are started together and
train in turns, A B B A ..., so that drift of the machine affects both alike. The settings that are
certainly faster are combined, measured again, and written as a config for launch/train.py.
Takes the arguments of launch/train.py:

  harness bench sweep                                         the quickstart
  harness bench sweep --ranks 8 configs/resnet50_90ep.yaml --data.train DIR --data.val DIR

or compares only the variants you name; one may be another environment or commit of this checkout:

  harness bench sweep --arm engine.bucket-mb=100 --arm "engine.compile=true engine.threads=4" ...
  harness bench sweep --arm python=/envs/torch-nightly/bin/python --arm commit=v1.2 ...

No run is written; sweep.json, best.yaml and the output of the ranks are written to --out. Settings
that may change the accuracy (precision, local batch) are measured, but not put into best.yaml."""

SCALING = """\
The same training on 1, 2, 4 ... ranks: weak scaling keeps the local batch of each rank, strong
scaling keeps the global batch. The largest number of ranks runs the given config unchanged. Each
rank has as many threads as with the largest number. Takes the arguments of launch/train.py:

  harness bench scaling configs/resnet50_90ep.yaml --data.train DIR --data.val DIR
  harness bench scaling --ranks 1,2,4,8 ...
  sbatch --nodes 4 slurm/scaling.sh ...                       over several nodes

Each number of ranks has the machine for itself, in rounds, so that drift affects all alike. No run
is written; scaling.json, scaling.html and the output of the ranks are written to --out."""

app = group("bench", "Measure the loop, the loader, the parts of a step, and scaling.")
RANKS = "several ranks: torchrun --nproc-per-node 3 -m harness bench ... (images are per rank then)"


def known_model(name: str) -> str:
    """Return the name of a model, or refuse another one: a callback of options."""
    from harness.config import ModelName, load

    if name not in (known := get_args(ModelName)):
        raise BadParameter(f"no model {name!r}{load.nearest(name, [*known])}")
    return name


MINUTES = Option(5.0, callback=positive, help="time limit; what has begun is finished")
LAUNCH = Option(
    None, metavar="CMD", help="command that starts ranks on several nodes, such as slurm/ranks.sh"
)
HOST = Option(
    None, metavar="NAME", show_default="host name",
    help="with --launch: the name by which other nodes reach this host",
)  # fmt: skip

# Options of both benches of the training loop.
Model = Annotated[str, Option(metavar="NAME", callback=known_model, help="network")]
ImagePx = Annotated[int, Option(min=1, help="px")]
Batch = Annotated[int, Option(min=1, help="images")]
Turns = Annotated[int, Option(min=1, help="turns of each, at most")]
Threads = Annotated[int, Option(min=0, help="CPU threads per rank (0: cores)")]
Eager = Annotated[bool, Option("--eager", help="without torch.compile")]


@verb(app, epilog=RANKS)
def overhead(
    model: Model = "resnet18", image_px: ImagePx = 64, batch: Batch = 32, turns: Turns = 6,
    threads: Threads = 0, eager: Eager = False, minutes: float = MINUTES,
    steps: int = Option(60, min=1, help="steps per turn"),
) -> None:  # fmt: skip
    """Compare the harness's training loop with a bare loop, in turns."""
    from harness.bench import overhead
    from harness.bench.loop import Work

    work = Work(model, image_px, batch, steps, turns, threads, compiled=not eager)
    overhead.measure(work, minutes)


@verb(app, epilog=RANKS)
def checkpoint(
    model: Model = "resnet50", image_px: ImagePx = 128, batch: Batch = 32, turns: Turns = 4,
    threads: Threads = 0, eager: Eager = False, minutes: float = MINUTES,
    every: int = Option(20, min=1, help="steps per checkpoint, 2 a turn"),
    folder: Path = Option(Path(), metavar="DIR", show_default="the current folder",
        help="on the disk to measure; left as it was"),
) -> None:  # fmt: skip
    """Compare training with and without checkpoints, in turns."""
    from harness.bench import checkpoint
    from harness.bench.loop import Work

    steps = every * checkpoint.SAVES
    work = Work(model, image_px, batch, steps, turns, threads, compiled=not eager)
    checkpoint.measure(work, folder, minutes)


@verb(app, DATA)
def data(
    folders: list[Path] = Argument(metavar="DIR", help="a folder tree or tar shards"),
    image_px: int = Option(224, min=1, help="px"),
    batch: int = Option(64, min=1, help="images"),
    threads: int = Option(0, min=0, help="threads, and workers (0: cores)"),
    batches: int = Option(20, min=1, help="per turn"),
    turns: Turns = 5,
    read: Literal["mmap", "pread"] = Option("mmap", help="as data.read"),
    read_ahead: int = Option(4, min=0, metavar="BATCHES", help="as data.read_ahead_batches"),
    cold: bool = Option(False, "--cold",
        help="drop the files from memory before each turn; measure with and without read-ahead"),
    slow_read_ms: float = Option(0.0, metavar="MS",
        help="with --cold: delay the first read of each image by this, like a slow disk"),
    minutes: float = MINUTES,
) -> None:  # fmt: skip
    """Compare the harness's loader with DALI's own reader and torchvision's, in turns."""
    from harness.bench import data
    from harness.bench.loaders import Load

    first, *others = folders
    load = Load(
        first, image_px, batch, threads or rank_cores(), batches, read, read_ahead, slow_read_ms
    )
    data.measure(load, others, turns, cold=cold, minutes=minutes)


@verb(app, LADDER, passes_flags=True)
def ladder(
    context: Context,
    minutes: float = MINUTES,
    out: Path = Option(Path("bench/ladder"), metavar="DIR", help="for ladder.json and ladder.html"),
) -> None:
    """Measure each part of a step and its limit on this machine."""
    config = _config(context)
    from harness.bench.ladder import show_ladder

    show_ladder.run(config, context.args, minutes=minutes, folder=out)


@verb(app, SWEEP, passes_flags=True)
def sweep(
    context: Context,
    minutes: float = MINUTES,
    ranks: int | None = Option(None, min=1, metavar="N",
        help="on this node (default: its GPUs, or 1)"),
    arm: list[str] = Option([], metavar="WHAT",
        help="section.key=value, python=PATH, commit=REV, or several in quotes; may be repeated"),
    may_change_result: bool = Option(False, "--may-change-result",
        help="allow settings that may change the accuracy in best.yaml"),
    out: Path = Option(Path("bench/sweep"), metavar="DIR",
        help="for sweep.json, best.yaml and logs"),
    launch: str | None = LAUNCH,
    host: str | None = HOST,
) -> None:  # fmt: skip
    """Compare variants of a config in turns, and write the fastest."""
    _config(context)
    from harness.bench.sweep import show_sweep

    base = _base(context.args, ranks or _gpus() or 1, launch, host)
    show_sweep.run(base, arm, minutes=minutes, folder=out, may_change_result=may_change_result)


@verb(app, SCALING, passes_flags=True)
def scaling(
    context: Context,
    minutes: float = MINUTES,
    ranks: str | None = Option(None, metavar="N,N,...",
        help="numbers of ranks (default: 1, 2, 4 ... up to this node's GPUs, or cores)"),
    per_node: int | None = Option(None, min=1, metavar="N",
        help="ranks of a node, which share its cores (default: all ranks)"),
    out: Path = Option(Path("bench/scaling"), metavar="DIR",
        help="for scaling.json, scaling.html and logs"),
    launch: str | None = LAUNCH,
    host: str | None = HOST,
) -> None:  # fmt: skip
    """Measure weak and strong scaling on 1, 2, 4 ... ranks."""
    numbers = _numbers(ranks) if ranks else []
    _config(context)
    from harness.bench.sweep import show_scaling

    if not numbers:  # 1, 2, 4 ... up to and including the largest
        largest = _gpus() or rank_cores()
        numbers = sorted({*(2**n for n in range(largest.bit_length())), largest})
    base = _base(context.args, max(numbers), launch, host)
    per_node = per_node or max(numbers)
    show_scaling.run(base, numbers, minutes=minutes, folder=out, per_node=per_node)


def _config(context: Context) -> "Config":
    """Check the config of a verb before torch is imported, which takes seconds."""
    from harness.config import load

    return load.load(context.args, prog=context.command_path)


def _base(flags: list[str], ranks: int, launch: str | None, host: str | None) -> "Variant":
    from harness.bench.sweep.variant import Variant

    if "RANK" in os.environ:
        raise BadInput("torchrun: this verb starts its ranks itself; run it directly, with --ranks")
    base = Variant("base", tuple(flags), ranks=ranks)
    if launch is None:
        return base
    return replace(base, launch=tuple(shlex.split(launch)), host=host or socket.gethostname())


def _numbers(text: str) -> list[int]:
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = [0]
    if numbers[0] < 1:
        raise BadInput(f"--ranks: write numbers from 1 on, as 1,2,4, not {text}")
    return numbers


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
