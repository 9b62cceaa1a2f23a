"""The verb `harness bench`: measure the loop, the loader, the parts of a step, and scaling."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from typer import Argument, Context, Option

from harness.commands import bench_arms
from harness.commands.parser import group, positive, verb
from harness.errors import BadInput
from harness.system.process import rank_cores

if TYPE_CHECKING:
    from harness.bench.loop import Work


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


RANKS = "several ranks: torchrun --nproc-per-node 3 -m harness bench ... (images are per rank then)"

# Options of both benches of the training loop.
BATCH = Option(32, min=1, help="images")
THREADS = Option(0, min=0, help="CPU threads per rank (0: cores)")
EAGER = Option(False, "--eager", help="without torch.compile")

app = group("bench", "Measure the loop, the loader, the parts of a step, and scaling.")


@verb(app, epilog=RANKS)
def overhead(
    model: str = Option("resnet18", metavar="NAME", help="network"),
    image_px: int = Option(64, min=1, help="px"),
    batch: int = BATCH,
    turns: int = Option(6, min=1, help="turns of each"),
    threads: int = THREADS,
    eager: bool = EAGER,
    steps: int = Option(60, min=1, help="steps per turn"),
) -> None:
    """Compare the harness's training loop with a bare loop, in turns."""
    work = _work(model, image_px, batch, steps, turns, threads, eager=eager)
    from harness.bench import overhead

    overhead.measure(work)


@verb(app, epilog=RANKS)
def checkpoint(
    model: str = Option("resnet50", metavar="NAME", help="network"),
    image_px: int = Option(128, min=1, help="px"),
    batch: int = BATCH,
    turns: int = Option(4, min=1, help="turns of each"),
    threads: int = THREADS,
    eager: bool = EAGER,
    every: int = Option(20, min=1, help="steps per checkpoint, 2 a turn"),
    folder: Path = Option(Path(), metavar="DIR", show_default="the current folder",
        help="on the disk to measure; left as it was"),
) -> None:  # fmt: skip
    """Compare training with and without checkpoints, in turns."""
    from harness.bench import checkpoint

    steps = every * checkpoint.SAVES
    checkpoint.measure(_work(model, image_px, batch, steps, turns, threads, eager=eager), folder)


def _work(
    model: str, image_px: int, batch: int, steps: int, turns: int, threads: int, *, eager: bool
) -> Work:
    from harness.config import load
    from harness.models.zoo import MODELS

    if model not in MODELS:
        raise BadInput(f"--model: no model {model!r}{load.nearest(model, [*MODELS])}")
    from harness.bench.loop import Work

    return Work(model, image_px, batch, steps, turns, compiled=not eager, threads=threads)


@verb(app, DATA)
def data(
    folders: list[Path] = Argument(metavar="DIR", help="a folder tree or tar shards"),
    image_px: int = Option(224, min=1, help="px"),
    batch: int = Option(64, min=1, help="images"),
    threads: int = Option(0, min=0, help="threads, and workers (0: cores)"),
    batches: int = Option(20, min=1, help="per turn"),
    turns: int = Option(5, min=1, help="turns of each"),
    read: Literal["mmap", "pread"] = Option("mmap", help="as data.read"),
    read_ahead: int = Option(4, min=0, metavar="BATCHES", help="as data.read_ahead_batches"),
    cold: bool = Option(False, "--cold",
        help="drop the files from memory before each turn; measure with and without read-ahead"),
    slow_read_ms: float = Option(0.0, metavar="MS",
        help="with --cold: delay the first read of each image by this, like a slow disk"),
) -> None:  # fmt: skip
    """Compare the harness's loader with DALI's own reader and torchvision's, in turns."""
    from harness.bench import data
    from harness.bench.loaders import Load

    first, *others = folders
    load = Load(
        first, image_px, batch, threads or rank_cores(), batches, read, read_ahead, slow_read_ms
    )
    data.measure(load, others, turns, cold=cold)


@verb(app, LADDER, passes_flags=True)
def ladder(
    context: Context,
    minutes: float = Option(10.0, callback=positive, help="at most, compiling included"),
    out: Path = Option(Path("bench/ladder"), metavar="DIR", help="for ladder.json and ladder.html"),
) -> None:
    """Measure each part of a step and its limit on this machine."""
    from harness.config import load

    # Check the config before torch is imported, which takes seconds.
    config = load.load(context.args, prog="harness bench ladder")
    from harness.bench.ladder import show_ladder

    show_ladder.run(config, context.args, minutes=minutes, folder=out)


app.add_typer(bench_arms.app)
