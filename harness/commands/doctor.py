"""`harness doctor`: is this machine fit for a run, and does a killed run go on exactly?"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from harness.commands.parser import Parser, count, positive

VERBS = ("machine", "resume", "nodes")
EPILOG = """\
CONFIG.yaml and --section.key as launch/train.py takes them; by default the quickstart.

also:
  torchrun --nproc-per-node 8 -m harness doctor ...   all ranks of a job, and what joins them
  harness doctor nodes FILE...   what --json printed on several nodes, in one table with outliers
  harness doctor resume          does a run that is killed end in the same bits? (see its --help)

exit codes: 0 good or yellow, 1 red, 2 bad input
"""


def with_verb(words: list[str]) -> list[str]:
    """`doctor` alone is `doctor machine`: argparse would take the CONFIG after it for a verb."""
    if words[:1] == ["doctor"] and (len(words) < 2 or words[1] not in VERBS):
        return ["doctor", "machine", *words[1:]]
    return words


def add(all_verbs: Any) -> None:
    """The verb's words."""
    parser = all_verbs.add_parser("doctor", help="look at this machine before a run")
    verbs = parser.add_subparsers(required=True, metavar="VERB", parser_class=Parser)
    machine = verbs.add_parser(
        "machine",
        prog="harness doctor",
        usage="harness doctor [CONFIG.yaml] [options] [--section.key VALUE ...]",
        description="GPUs, software, cores, limits, disks, data, network: is this machine fit for "
        "the run, and how fast is it? In under a minute; nothing is left behind.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    machine.add_argument("--json", action="store_true", help="print one JSON object instead")
    machine.add_argument(
        "--expect-gpus", type=count, metavar="N", help="on each node (default: what Slurm gave)"
    )
    machine.set_defaults(verb=_doctor_machine, words=[])
    nodes = verbs.add_parser(
        "nodes",
        help="join the reports of several nodes, and name the outliers",
        epilog="exit codes: 0 good or yellow, 1 red, 2 bad input",
    )
    nodes.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="what harness doctor --json printed"
    )
    nodes.set_defaults(verb=_doctor_nodes)
    resume = verbs.add_parser(
        "resume",
        help="whether a run that is killed ends in the same bits as one that is not",
        usage="harness doctor resume [CONFIG.yaml] [options] [--section.key VALUE ...]",
        epilog="CONFIG.yaml and --section.key as launch/train.py takes them; by default the "
        "quickstart. Exit codes: 0 the same, 1 not the same, 2 bad input, 3 cannot tell.",
        allow_abbrev=False,
    )
    resume.add_argument(
        "--ranks", type=positive, metavar="N", help="default: one per GPU, or 3 on the CPU"
    )
    resume.add_argument("--steps", type=positive, default=60, help="of each run (default 60)")
    resume.add_argument("--kills", type=positive, default=5, help="in all (default 5)")
    resume.add_argument("--seed", type=int, default=0, help="of the kills (default 0)")
    resume.add_argument("--keep", type=Path, metavar="DIR", help="keep runs and logs, in a new DIR")
    resume.add_argument(
        "--loss-bound-pct", type=float, default=2.0, metavar="PCT",
        help="on a GPU with engine.deterministic off: how far losses may differ (default 2)",
    )  # fmt: skip
    resume.set_defaults(verb=_doctor_resume, words=[])


def _doctor_machine(options: argparse.Namespace) -> None:
    from harness.doctor.words import read_config

    config = read_config(options.words)  # torch takes seconds to import: a typo is told before
    from harness.doctor import machine

    expected = options.expect_gpus
    sys.exit(
        machine.check_machine(config, options.words, expect_gpus=expected, as_json=options.json)
    )


def _doctor_nodes(options: argparse.Namespace) -> None:
    from harness.doctor import nodes

    sys.exit(nodes.join(options.files))


def _doctor_resume(options: argparse.Namespace) -> None:
    from harness.doctor.chaos import resume

    sys.exit(
        resume.check(
            options.words,
            ranks=options.ranks,
            steps=options.steps,
            kills=options.kills,
            seed=options.seed,
            keep=options.keep,
            loss_bound_pct=options.loss_bound_pct,
        )
    )
