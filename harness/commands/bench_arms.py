"""`harness bench sweep` and `scaling`: measures that start ranks of their own."""

from __future__ import annotations

import argparse
import os
import shlex
import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.commands.parser import minutes, positive, teaching
from harness.errors import BadInput
from harness.system import cores

if TYPE_CHECKING:
    from harness.bench.sweep.process import Arm

SWEEP = """\
The switches that people argue about, each beside the run as it was asked for: both are started
together and train in turns, A B B A ..., so that a drift of the machine hits both alike. What is
faster beyond doubt is put together, measured anew, and written as a config that training takes.
Takes the words of launch/train.py:

  harness bench sweep                                         the quickstart
  harness bench sweep --ranks 8 configs/resnet50_90ep.yaml --data.train DIR --data.val DIR

or only what you name, which may be another environment (torch) or another commit of this checkout:

  harness bench sweep --arm engine.bucket-mb=100 --arm "engine.compile=true engine.threads=4" ...
  harness bench sweep --arm python=/envs/torch-nightly/bin/python --arm commit=v1.2 ...

No run is written; sweep.json, best.yaml and what the ranks print come into --out. Switches that
may change the accuracy (precision, local batch) are measured, but not put into best.yaml."""

SCALING = """\
The same training on 1, 2, 4 ... ranks: weak, each rank with the same local batch, and strong, all
together with the same global batch. With the most ranks it is the training that is asked for. Each
rank has as many threads as it has with all of them. Takes the words of launch/train.py:

  harness bench scaling configs/resnet50_90ep.yaml --data.train DIR --data.val DIR
  harness bench scaling --ranks 1,2,4,8 ...
  sbatch --nodes 4 slurm/scaling.sh ...                       over several nodes

Each number of ranks has the machine for itself, in rounds, so that a drift hits all alike. No run
is written; scaling.json, scaling.html and what the ranks print come into --out."""


def add(bench: Any) -> None:
    """Both verbs' words."""
    _add_sweep(bench)
    _add_scaling(bench)


def _add_sweep(bench: Any) -> None:
    sweep = teaching(
        bench, "sweep", help="switches in turns beside the run as it was asked for; the best",
        description=SWEEP,
    )  # fmt: skip
    sweep.usage = "harness bench sweep [CONFIG.yaml] [options] [--section.key VALUE ...]"
    sweep.allow_abbrev = False
    sweep.add_argument(
        "--minutes", type=minutes, default=20.0,
        help="at most, if three pairs of turns of what is begun fit into that (default 20)",
    )  # fmt: skip
    sweep.add_argument(
        "--ranks", type=positive, metavar="N", help="on this node (default: its GPUs, or 1)"
    )
    sweep.add_argument(
        "--arm", action="append", default=[], metavar="WHAT", dest="arms",
        help="section.key=value, python=PATH, commit=REV, or several in quotes; may be repeated",
    )  # fmt: skip
    sweep.add_argument(
        "--may-change-result",
        action="store_true",
        help="let switches that may change the accuracy be among the best",
    )
    sweep.add_argument(
        "--out", type=Path, default=Path("bench/sweep"), metavar="DIR",
        help="for sweep.json, best.yaml and logs (default bench/sweep)",
    )  # fmt: skip
    _add_launch(sweep)
    sweep.set_defaults(verb=_bench_sweep, words=[])


def _bench_sweep(options: argparse.Namespace) -> None:
    from harness.config import load

    # Torch takes seconds to import: a typo is told before.
    load.load(options.words, prog="harness bench sweep")
    from harness.bench.sweep import show_sweep

    show_sweep.run(
        _base(options, options.ranks or _gpus() or 1), options.arms, minutes=options.minutes,
        folder=options.out, may_change_result=options.may_change_result,
    )  # fmt: skip


def _add_scaling(bench: Any) -> None:
    scaling = teaching(
        bench, "scaling", help="1, 2, 4 ... ranks, weak and strong, and how efficient they are",
        description=SCALING,
    )  # fmt: skip
    scaling.usage = "harness bench scaling [CONFIG.yaml] [options] [--section.key VALUE ...]"
    scaling.allow_abbrev = False
    scaling.add_argument(
        "--minutes", type=minutes, default=15.0,
        help="at most, if three rounds fit into that (default 15)",
    )  # fmt: skip
    scaling.add_argument(
        "--ranks",
        type=_numbers,
        metavar="N,N,...",
        help="numbers of ranks (default: 1, 2, 4 ... up to this node's GPUs, or cores)",
    )
    scaling.add_argument(
        "--per-node",
        type=positive,
        metavar="N",
        help="ranks of a node, which share its cores (default: all of them)",
    )
    scaling.add_argument(
        "--out", type=Path, default=Path("bench/scaling"), metavar="DIR",
        help="for scaling.json, scaling.html and logs (default bench/scaling)",
    )  # fmt: skip
    _add_launch(scaling)
    scaling.set_defaults(verb=_bench_scaling, words=[])


def _bench_scaling(options: argparse.Namespace) -> None:
    from harness.config import load

    # Torch takes seconds to import: a typo is told before.
    load.load(options.words, prog="harness bench scaling")
    from harness.bench.sweep import show_scaling

    ranks = options.ranks or _doubling(_gpus() or cores.of_rank())
    show_scaling.run(
        _base(options, max(ranks)), ranks, minutes=options.minutes, folder=options.out,
        per_node=options.per_node or max(ranks),
    )  # fmt: skip


def _add_launch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--launch", metavar="CMD", help="what starts ranks on several nodes, as slurm/ranks.sh does"
    )
    parser.add_argument(
        "--host", metavar="NAME", default=socket.gethostname(),
        help="with --launch: this host, as other nodes know it (default its name)",
    )  # fmt: skip


def _base(options: argparse.Namespace, ranks: int) -> Arm:
    from harness.bench.sweep.process import Arm

    if "RANK" in os.environ:
        raise BadInput("under torchrun: this starts its ranks itself; give --ranks instead")
    arm = Arm("base", tuple(options.words), ranks=ranks)
    if options.launch is None:
        return arm
    return replace(arm, launch=tuple(shlex.split(options.launch)), host=options.host)


def _numbers(text: str) -> list[int]:
    """argparse's type of `1,2,4`."""
    return sorted({positive(each) for each in text.split(",")})


def _doubling(most: int) -> list[int]:
    """1, 2, 4 ... up to the most, which is among them."""
    return sorted({*(2**n for n in range(most.bit_length())), most})


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
