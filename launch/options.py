"""Parse the command line of launch/submit.py: its own options, and the settings of the run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from harness.config import load
from harness.errors import BadInput
from launch import resources
from launch.resources import count
from launch.sweep import PROG

EXAMPLES = """\
examples:
  one run on 4 nodes of 8 GPUs, requeued every 8 hours until it has finished
    python launch/submit.py configs/resnet50_90ep.yaml --nodes 4 --partition gpu --time 8h \\
        --data.train /imagenet/train --data.val /imagenet/val
  one job array of five seeds, two at a time; one of three learning rates
    python launch/submit.py configs/resnet50_90ep.yaml ... --seeds 5 --parallel 2
    python launch/submit.py configs/resnet50_90ep.yaml ... --sweep optim.lr-per-256=0.05,0.1,0.2
  print what would be submitted; run on this machine without Slurm; use nodes without GPUs
    python launch/submit.py configs/resnet50_90ep.yaml ... --dry-run
    python launch/submit.py --local --gpus-per-node 0 --tasks-per-node 2
    python launch/submit.py --nodes 2 --gpus-per-node 0 --tasks-per-node 2

Settings, --section.key VALUE, are those of launch/train.py (see its --help). They are checked and
written to a file before anything is queued. Near the time limit and when preempted, a run saves, is
requeued, and continues in the same run folder and W&B run. `scancel JOB` saves and ends it;
`scancel --signal USR2 JOB` saves and requeues it.
"""


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the arguments into the options of this script and those for launch/train.py.

    Raises:
        BadInput: an unknown option, or a value that cannot be used.
        SystemExit: after printing --help.
    """
    parser = load.Parser(
        prog=PROG,
        usage=f"{PROG} [CONFIG.yaml] [options] [--section.key VALUE ...]",
        description="Submit a training to Slurm, one task per GPU; by default the quickstart.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    resources.add_options(parser)
    _add_options(parser)
    options, settings = parser.parse_known_args(argv)
    known = [name for action in parser._actions for name in action.option_strings]
    for argument in settings:
        option = argument.split("=")[0]
        if option.startswith("--") and "." not in option:  # a setting has a section
            raise BadInput(f"{option}: no such option{load.nearest(option, known)}")
    resources.check(options)
    return options, settings


def _add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("several runs").add_argument
    add(
        "--seeds",
        type=count,
        default=1,
        metavar="N",
        help="number of runs, with seeds from run.seed on",
    )
    add("--sweep", action="append", default=[], metavar="SECTION.KEY=A,B",
        help="one run for each value; if repeated, for each combination")  # fmt: skip
    add("--parallel", type=count, default=256, metavar="N",
        help="most runs at a time (default 256)")  # fmt: skip
    add = parser.add_argument_group("restarts").add_argument
    add("--signal-delay-s", type=count, default=120, metavar="S",
        help="seconds before the time limit at which a run saves (default 120)")  # fmt: skip
    add("--max-restarts", type=int, default=3, metavar="N",
        help="how often a job is requeued after a rank crashed (default 3)")  # fmt: skip
    add("--max-requeues", type=int, default=100, metavar="N",
        help="how often it is requeued at its time limit or after preemption "
        "(default 100)")  # fmt: skip
    add = parser.add_argument_group("instead of submitting").add_argument
    add("--dry-run", action="store_true", help="print what would be submitted, write nothing")
    add("--local", action="store_true", help="run on this machine, now, without Slurm")
