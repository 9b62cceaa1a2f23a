"""The verbs `harness bench sweep` and `scaling`, which start their own ranks."""

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
from harness.system.process import rank_cores

if TYPE_CHECKING:
    from harness.bench.sweep.process import Variant

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


LAUNCH = Option(
    None, metavar="CMD", help="command that starts ranks on several nodes, such as slurm/ranks.sh"
)
HOST = Option(
    None, metavar="NAME", show_default="host name",
    help="with --launch: the name by which other nodes reach this host",
)  # fmt: skip


app = group()


@verb(app, SWEEP, passes_flags=True)
def sweep(
    context: Context,
    minutes: float = Option(20.0, callback=positive,
        help="time limit; a variant that has started still gets three pairs of turns"),
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
    from harness.config import load

    # Check the config before torch is imported, which takes seconds.
    load.load(context.args, prog="harness bench sweep")
    from harness.bench.sweep import show_sweep

    show_sweep.run(
        _base(context.args, ranks or _gpus() or 1, launch, host), arm,
        minutes=minutes, folder=out, may_change_result=may_change_result,
    )  # fmt: skip


@verb(app, SCALING, passes_flags=True)
def scaling(
    context: Context,
    minutes: float = Option(15.0, callback=positive,
        help="time limit; three rounds are always measured"),
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
    from harness.config import load

    numbers = _numbers(ranks) if ranks else []
    # Check the config before torch is imported, which takes seconds.
    load.load(context.args, prog="harness bench scaling")
    from harness.bench.sweep import show_scaling

    numbers = numbers or _doubling(_gpus() or rank_cores())
    show_scaling.run(
        _base(context.args, max(numbers), launch, host), numbers,
        minutes=minutes, folder=out, per_node=per_node or max(numbers),
    )  # fmt: skip


def _base(flags: list[str], ranks: int, launch: str | None, host: str | None) -> Variant:
    from harness.bench.sweep.process import Variant

    if "RANK" in os.environ:
        raise BadInput("torchrun: this verb starts its ranks itself; run it directly, with --ranks")
    arm = Variant("base", tuple(flags), ranks=ranks)
    if launch is None:
        return arm
    return replace(arm, launch=tuple(shlex.split(launch)), host=host or socket.gethostname())


def _numbers(text: str) -> list[int]:
    """Return the numbers of a text such as `1,2,4`, sorted."""
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = [0]
    if numbers[0] < 1:
        raise BadInput(f"--ranks: write numbers from 1 on, as 1,2,4, not {text}")
    return numbers


def _doubling(largest: int) -> list[int]:
    """Return 1, 2, 4 ... up to and including the largest number."""
    return sorted({*(2**n for n in range(largest.bit_length())), largest})


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
