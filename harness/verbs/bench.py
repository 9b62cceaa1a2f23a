"""`harness bench`: measure."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from harness.config import ModelName
from harness.verbs.words import Parser, count, positive

if TYPE_CHECKING:
    from harness.bench.loop import Work


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
    loader = bench.add_parser(
        "data", help="the DALI loader against torchvision's ImageFolder and DataLoader, in turns"
    )
    loader.add_argument("folder", type=Path, metavar="DIR", help="images, one folder per class")
    loader.add_argument("--image-px", type=positive, default=224, help="px (default 224)")
    loader.add_argument("--batch", type=positive, default=64, help="images (default 64)")
    loader.add_argument("--threads", type=count, default=0, help="threads, and workers (0: cores)")
    loader.add_argument("--batches", type=positive, default=20, help="per turn (default 20)")
    loader.add_argument("--turns", type=positive, default=5, help="turns of each (default 5)")
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

    threads = options.threads or data.cores()
    load = data.Load(options.folder, options.image_px, options.batch, threads, options.batches)
    data.measure(load, options.turns)
