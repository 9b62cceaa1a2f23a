"""The command line of launch/submit.py: its options, the run's settings, sbatch's parameters."""

import argparse
import math
import re
from collections.abc import Sequence
from typing import Any

from harness.config import load
from harness.errors import BadInput
from launch.ending import Limits
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

_TIMES = (
    # 8h, 1d12h, 1.5h; then Slurm's forms: 90, 30:30; 8:00:00; 1-12, 1-12:30, 1-12:30:00
    "".join(rf"(?:(?P<{unit}>\d+(?:\.\d+)?){unit})?" for unit in "dhms"),
    r"(?P<m>\d+)(?::(?P<s>\d+))?",
    r"(?P<h>\d+):(?P<m>\d+):(?P<s>\d+)",
    r"(?P<d>\d+)-(?P<h>\d+)(?::(?P<m>\d+))?(?::(?P<s>\d+))?",
)
_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_AS_SBATCH = ("partition", "account", "qos", "constraint", "exclude")


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
    _add_options(parser)
    options, settings = parser.parse_known_args(argv)
    for argument in settings:
        option = argument.split("=")[0]
        if option.startswith("--") and "." not in option:  # a setting has a section
            nearest = load.nearest(option, list(parser._option_string_actions))
            raise BadInput(f"{option}: no such option{nearest}")
    if options.gpus_per_node < 0:
        raise BadInput(f"--gpus-per-node: must be at least 0, not {options.gpus_per_node}")
    if options.gpus_per_node and options.tasks_per_node != 1:
        raise BadInput(
            "--tasks-per-node: there is one rank per GPU; without GPUs add --gpus-per-node 0"
        )
    if options.signal_delay_s >= 60 * options.time:
        raise BadInput(
            f"--signal-delay-s: a job of {options.time} min cannot be told to save "
            f"{options.signal_delay_s} s before its end; give a longer --time, or a shorter delay"
        )
    options.ranks_per_node = options.gpus_per_node or options.tasks_per_node
    return options, settings


def _add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("resources").add_argument
    add("--nodes", type=count, default=1, metavar="N", help="number of nodes (default 1)")
    add("--gpus-per-node", type=int, default=8, metavar="N",
        help="GPUs per node, with one rank each (default 8); 0: ranks on the CPU")  # fmt: skip
    add("--tasks-per-node", type=count, default=1, metavar="N",
        help="ranks per node without GPUs (default 1)")  # fmt: skip
    add("--time", type=minutes, default=24 * 60, metavar="TIME",
        help="time limit of one start, before which the job saves and is requeued: 8h, 90m, "
        "1d12h, or as Slurm writes it, 1-12:00:00 (default 24h)")  # fmt: skip
    add("--cpus-per-task", type=count, metavar="N",
        help="CPU cores per rank, on nodes shared with other jobs; by default the job has its "
        "nodes to itself, with all their cores and memory")  # fmt: skip
    add("--mem", metavar="SIZE", help="memory per node, such as 200G")
    for name in _AS_SBATCH:
        add(f"--{name}", metavar=name.upper(), help=f"as sbatch's --{name}")
    add("--slurm", action="append", default=[], metavar="KEY[=VALUE]",
        help="any other option of sbatch, such as --slurm reservation=may; repeatable")  # fmt: skip
    add = parser.add_argument_group("several runs").add_argument
    add("--seeds", type=count, default=1, metavar="N",
        help="number of runs, with seeds from run.seed on")  # fmt: skip
    add("--sweep", action="append", default=[], metavar="SECTION.KEY=A,B",
        help="one run for each value; if repeated, for each combination")  # fmt: skip
    add("--parallel", type=count, default=256, metavar="N",
        help="most runs at a time (default 256)")  # fmt: skip
    add = parser.add_argument_group("restarts").add_argument
    add("--signal-delay-s", type=count, default=120, metavar="S",
        help="seconds before the time limit at which a run saves (default 120)")  # fmt: skip
    most = Limits()
    add("--max-restarts", type=int, default=most.restarts, metavar="N",
        help="how often a job is requeued after a rank crashed (default %(default)s)")  # fmt: skip
    add("--max-requeues", type=int, default=most.requeues, metavar="N",
        help="how often it is requeued at its time limit or after preemption "
        "(default %(default)s)")  # fmt: skip
    add = parser.add_argument_group("instead of submitting").add_argument
    add("--dry-run", action="store_true", help="print what would be submitted, write nothing")
    add("--local", action="store_true", help="run on this machine, now, without Slurm")


def minutes(text: str) -> int:
    """Parse a time limit into minutes, rounded up: `8h`, `90m`, `1d12h`, or any form of Slurm's.

    Raises:
        ArgumentTypeError: it has neither form, or is 0.
    """
    found = next(filter(None, (re.fullmatch(form, text) for form in _TIMES)), None)
    parts = found.groupdict(default="0").items() if found else ()
    if not (seconds := sum(float(number) * _SECONDS[unit] for unit, number in parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 8h, 90m or 1-12:00:00")
    return math.ceil(seconds / 60)


def parameters(options: argparse.Namespace) -> dict[str, Any]:
    """Return sbatch's parameters, named as in submitit's SlurmExecutor."""
    other = dict(text.split("=", 1) if "=" in text else (text, True) for text in options.slurm)
    exclusive = options.cpus_per_task is None
    same = ("nodes", "cpus_per_task", "time", "signal_delay_s", *_AS_SBATCH)
    named = {name: getattr(options, name) for name in same} | {
        "ntasks_per_node": options.ranks_per_node,
        "gpus_per_node": options.gpus_per_node or None,
        "exclusive": exclusive or None,
        "mem": options.mem or ("0" if exclusive else None),  # 0: all memory of the node
        # Some sites do not requeue a job after a node failure by default.
        "additional_parameters": {"requeue": True, **other},
    }
    return {key: value for key, value in named.items() if value is not None}


def count(text: str) -> int:
    """Parse a number that is at least 1, as a type of argparse."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return number
