"""The words of launch/submit.py: its own options, and those that it passes on."""

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
  one run, on 4 nodes of 8 GPUs, up to 8 hours at a time and as often as it takes
    python launch/submit.py configs/resnet50_90ep.yaml --nodes 4 --partition gpu --time 8h \\
        --data.train /imagenet/train --data.val /imagenet/val
  five seeds, two at a time; three learning rates: each is one job array
    python launch/submit.py configs/resnet50_90ep.yaml ... --seeds 5 --parallel 2
    python launch/submit.py configs/resnet50_90ep.yaml ... --sweep optim.lr-per-256=0.05,0.1,0.2
  what would be submitted; the same here, without Slurm; on nodes without GPUs
    python launch/submit.py configs/resnet50_90ep.yaml ... --dry-run
    python launch/submit.py --local --gpus-per-node 0 --tasks-per-node 2
    python launch/submit.py --nodes 2 --gpus-per-node 0 --tasks-per-node 2

Settings, --section.key VALUE, are those of launch/train.py (see its --help). They are checked and
frozen before anything is queued. Near the time limit and when preempted, a run saves, queues again
and goes on in the same run folder and W&B run. `scancel JOB` saves and ends it for good;
`scancel --signal USR2 JOB` saves and queues it again.
"""


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our own options, and the words that are for launch/train.py.

    Raises:
        BadInput: an unknown option, or a value that is none.
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
    options, settings = parser.parse_known_args(words)
    ours = [word for action in parser._actions for word in action.option_strings]
    for word in settings:
        option = word.split("=")[0]
        if option.startswith("--") and "." not in option:  # a setting has a section
            raise BadInput(f"{option}: no such option{load.nearest(option, ours)}")
    resources.check(options)
    return options, settings


def _add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("several runs").add_argument
    add("--seeds", type=count, default=1, metavar="N", help="so many runs, from run.seed on")
    add("--sweep", action="append", default=[], metavar="SECTION.KEY=A,B",
        help="a run for each value; given twice, for each combination")  # fmt: skip
    add("--parallel", type=count, default=256, metavar="N",
        help="how many at a time at most (default 256)")  # fmt: skip
    add = parser.add_argument_group("going on").add_argument
    add("--signal-delay-s", type=count, default=120, metavar="S",
        help="how long before the time limit a run saves, s (default 120)")  # fmt: skip
    add("--max-restarts", type=int, default=3, metavar="N",
        help="how often a job queues again after a rank broke (default 3)")  # fmt: skip
    add("--max-requeues", type=int, default=100, metavar="N",
        help="how often it queues again after its time limit or preemption "
        "(default 100)")  # fmt: skip
    add = parser.add_argument_group("instead of submitting").add_argument
    add("--dry-run", action="store_true", help="print what would be submitted, write nothing")
    add("--local", action="store_true", help="run the same thing on this machine, now")
