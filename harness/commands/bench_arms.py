"""`harness bench sweep` and `scaling`: measures that start ranks of their own."""

from __future__ import annotations

import os
import shlex
import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from typer import Context, Option

from harness.commands.parser import group, positive, verb
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


LAUNCH = Option(
    None, metavar="CMD", help="what starts ranks on several nodes, as slurm/ranks.sh does"
)
HOST = Option(
    None, metavar="NAME", show_default="its name",
    help="with --launch: this host, as other nodes know it",
)  # fmt: skip


app = group()


@verb(app, SWEEP, passes_flags=True)
def sweep(
    context: Context,
    minutes: float = Option(20.0, callback=positive,
        help="at most, if three pairs of turns of what is begun fit into that"),
    ranks: int | None = Option(None, min=1, metavar="N",
        help="on this node (default: its GPUs, or 1)"),
    arm: list[str] = Option([], metavar="WHAT",
        help="section.key=value, python=PATH, commit=REV, or several in quotes; may be repeated"),
    may_change_result: bool = Option(False, "--may-change-result",
        help="let switches that may change the accuracy be among the best"),
    out: Path = Option(Path("bench/sweep"), metavar="DIR",
        help="for sweep.json, best.yaml and logs"),
    launch: str | None = LAUNCH,
    host: str | None = HOST,
) -> None:  # fmt: skip
    """Switches in turns beside the run as it was asked for; the best."""
    from harness.config import load

    # A typo is refused before torch is imported, which takes seconds.
    load.load(context.args, prog="harness bench sweep")
    from harness.bench.sweep import show_sweep

    show_sweep.run(
        _base(context.args, ranks or _gpus() or 1, launch, host), arm,
        minutes=minutes, folder=out, may_change_result=may_change_result,
    )  # fmt: skip


@verb(app, SCALING, passes_flags=True)
def scaling(
    context: Context,
    minutes: float = Option(15.0, callback=positive, help="at most, if three rounds fit into that"),
    ranks: str | None = Option(None, metavar="N,N,...",
        help="numbers of ranks (default: 1, 2, 4 ... up to this node's GPUs, or cores)"),
    per_node: int | None = Option(None, min=1, metavar="N",
        help="ranks of a node, which share its cores (default: all of them)"),
    out: Path = Option(Path("bench/scaling"), metavar="DIR",
        help="for scaling.json, scaling.html and logs"),
    launch: str | None = LAUNCH,
    host: str | None = HOST,
) -> None:  # fmt: skip
    """1, 2, 4 ... ranks, weak and strong, and how efficient they are."""
    from harness.config import load

    numbers = _numbers(ranks) if ranks else []
    # A typo is refused before torch is imported, which takes seconds.
    load.load(context.args, prog="harness bench scaling")
    from harness.bench.sweep import show_scaling

    numbers = numbers or _doubling(_gpus() or cores.of_rank())
    show_scaling.run(
        _base(context.args, max(numbers), launch, host), numbers,
        minutes=minutes, folder=out, per_node=per_node or max(numbers),
    )  # fmt: skip


def _base(flags: list[str], ranks: int, launch: str | None, host: str | None) -> Arm:
    from harness.bench.sweep.process import Arm

    if "RANK" in os.environ:
        raise BadInput("under torchrun: this starts its ranks itself; give --ranks instead")
    arm = Arm("base", tuple(flags), ranks=ranks)
    if launch is None:
        return arm
    return replace(arm, launch=tuple(shlex.split(launch)), host=host or socket.gethostname())


def _numbers(text: str) -> list[int]:
    """`1,2,4`, sorted."""
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = [0]
    if numbers[0] < 1:
        raise BadInput(f"--ranks: write numbers from 1 on, as 1,2,4, not {text}")
    return numbers


def _doubling(most: int) -> list[int]:
    """1, 2, 4 ... up to the most, which is among them."""
    return sorted({*(2**n for n in range(most.bit_length())), most})


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
