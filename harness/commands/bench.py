"""`harness bench`: measure."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from harness.commands import bench_arms
from harness.commands.parser import Parser, count, minutes, positive, teaching
from harness.config import ModelName
from harness.system import cores

if TYPE_CHECKING:
    from harness.bench.loop import Work


LADDER = """\
The step of training, taken apart: reading, decoding, the loader, forward, backward, optimizer, sums
over ranks, each alone and then together, beside what this machine can do at most. The last lines
say what binds and what to change first. Takes the words of launch/train.py:

  harness bench ladder                                        the quickstart
  harness bench ladder configs/resnet50_90ep.yaml --data.train DIR --data.val DIR
  torchrun --nproc-per-node 8 -m harness bench ladder ...     all GPUs of a node
  sbatch slurm/bench.sh ...                                   of several nodes

Nothing is trained and no run is written; ladder.json and ladder.html come into --out."""

DATA = """\
Random training crops, decoded and nothing else. The harness reads each DIR; DALI's own reader,
torchvision's ImageFolder and the decoding alone read the last one that is a folder tree.

  harness bench data /data/imagenet/train                     a tree, or
  harness bench data shards/train shards-256/train tree/train shards of it too
  harness bench data --cold shards/train                      from the disk"""


def add(verbs: Any) -> None:
    """The verb's words."""
    bench = verbs.add_parser("bench", help="measure").add_subparsers(
        required=True, metavar="VERB", parser_class=Parser
    )
    overhead = bench.add_parser(
        "overhead", help="the harness's training loop against a bare loop, in turns"
    )
    _add_work(overhead, model="resnet18", image_px=64, turns=6)
    overhead.add_argument("--steps", type=positive, default=60, help="steps per turn (default 60)")
    overhead.set_defaults(verb=_bench_overhead)
    checkpoint = bench.add_parser(
        "checkpoint", help="the training loop with checkpoints against without, in turns"
    )
    _add_work(checkpoint, model="resnet50", image_px=128, turns=4)
    checkpoint.add_argument(
        "--every", type=positive, default=20, help="steps per checkpoint, 2 a turn (default 20)"
    )
    checkpoint.add_argument(
        "--folder", type=Path, default=Path(), metavar="DIR",
        help="on the disk to measure; left as it was (default: the current folder)",
    )  # fmt: skip
    checkpoint.set_defaults(verb=_bench_checkpoint)
    _add_data(bench)
    _add_ladder(bench)
    bench_arms.add(bench)


def _add_ladder(bench: Any) -> None:
    ladder = teaching(
        bench, "ladder", help="what holds this machine back: each part of a step, and its limit",
        description=LADDER,
    )  # fmt: skip
    ladder.usage = "harness bench ladder [CONFIG.yaml] [options] [--section.key VALUE ...]"
    ladder.allow_abbrev = False
    ladder.add_argument(
        "--minutes", type=minutes, default=10.0, help="at most, compiling included (default 10)"
    )
    ladder.add_argument(
        "--out", type=Path, default=Path("bench/ladder"), metavar="DIR",
        help="for ladder.json and ladder.html (default bench/ladder)",
    )  # fmt: skip
    ladder.set_defaults(verb=_bench_ladder, words=[])


def _bench_ladder(options: argparse.Namespace) -> None:
    from harness.config import load as cli

    # Torch takes seconds to import: a typo is told before.
    config = cli.load(options.words, prog="harness bench ladder")
    from harness.bench.ladder import show_ladder

    show_ladder.run(config, options.words, minutes=options.minutes, folder=options.out)


def _add_data(bench: Any) -> None:
    loader = teaching(
        bench,
        "data",
        help="the harness's loader against DALI's own reader and torchvision's, in turns",
        description=DATA,
    )
    loader.add_argument(
        "folders", type=Path, nargs="+", metavar="DIR", help="a folder tree or tar shards"
    )
    loader.add_argument("--image-px", type=positive, default=224, help="px (default 224)")
    loader.add_argument("--batch", type=positive, default=64, help="images (default 64)")
    loader.add_argument("--threads", type=count, default=0, help="threads, and workers (0: cores)")
    loader.add_argument("--batches", type=positive, default=20, help="per turn (default 20)")
    loader.add_argument("--turns", type=positive, default=5, help="turns of each (default 5)")
    loader.add_argument(
        "--read", choices=("mmap", "pread"), default="mmap", help="as data.read (default mmap)"
    )
    loader.add_argument(
        "--read-ahead", type=count, default=4, metavar="BATCHES",
        help="as data.read_ahead_batches (default 4)",
    )  # fmt: skip
    loader.add_argument(
        "--cold", action="store_true",
        help="have the files dropped from memory before each turn: with read-ahead and without",
    )  # fmt: skip
    loader.add_argument(
        "--slow-read-ms", type=float, default=0.0, metavar="MS",
        help="with --cold: put so much into the first read of each image, as a slow disk would "
        "(default 0)",
    )  # fmt: skip
    loader.set_defaults(verb=_bench_data)


def _add_work(parser: argparse.ArgumentParser, *, model: str, image_px: int, turns: int) -> None:
    """What a bench of the training loop trains; several ranks: under torchrun -m harness."""
    parser.epilog = (
        "several ranks: torchrun --nproc-per-node 3 -m harness bench ... (images are per rank then)"
    )
    parser.add_argument(
        "--model", default=model, choices=get_args(ModelName), metavar="NAME",
        help=f"network (default {model})",
    )  # fmt: skip
    parser.add_argument(
        "--image-px", type=positive, default=image_px, help=f"px (default {image_px})"
    )
    parser.add_argument("--batch", type=positive, default=32, help="images (default 32)")
    parser.add_argument(
        "--turns", type=positive, default=turns, help=f"turns of each (default {turns})"
    )
    parser.add_argument("--threads", type=count, default=0, help="CPU threads per rank (0: cores)")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")


def _bench_overhead(options: argparse.Namespace) -> None:
    from harness.bench import overhead

    overhead.measure(_work(options, options.steps))


def _bench_checkpoint(options: argparse.Namespace) -> None:
    from harness.bench import checkpoint

    work = _work(options, options.every * checkpoint.SAVES)
    checkpoint.measure(work, options.folder)


def _work(options: argparse.Namespace, steps: int) -> Work:
    from harness.bench.loop import Work

    o = options
    return Work(
        o.model, o.image_px, o.batch, steps, o.turns, compiled=not o.eager, threads=o.threads
    )


def _bench_data(options: argparse.Namespace) -> None:
    from harness.bench import data
    from harness.bench.loaders import Load

    threads = options.threads or cores.of_rank()
    first, *others = options.folders
    load = Load(
        first, options.image_px, options.batch, threads, options.batches, options.read,
        options.read_ahead, options.slow_read_ms,
    )  # fmt: skip
    data.measure(load, others, options.turns, cold=options.cold)
