"""`harness doctor`: is this machine fit for a run, and does a killed run go on exactly?"""

from __future__ import annotations

import sys
from pathlib import Path

from typer import Argument, Context, Option

from harness.commands.parser import group, verb

VERBS = ("machine", "resume", "nodes")
MACHINE = """\
GPUs, software, cores, limits, disks, data, network: is this machine fit for the run, and how fast
is it? In under a minute; nothing is left behind.

CONFIG.yaml and --section.key as launch/train.py takes them; by default the quickstart.

also:
  torchrun --nproc-per-node 8 -m harness doctor ...   all ranks of a job, and what joins them
  harness doctor nodes FILE...   what --json printed on several nodes, in one table with outliers
  harness doctor resume          does a run that is killed end in the same bits? (see its --help)

exit codes: 0 good or yellow, 1 red, 2 bad input"""

RESUME = """\
CONFIG.yaml and --section.key as launch/train.py takes them; by default the quickstart. Exit codes:
0 the same, 1 not the same, 2 bad input, 3 cannot tell."""


def with_verb(words: list[str]) -> list[str]:
    """`doctor` alone is `doctor machine`: typer would take the CONFIG after it for a verb."""
    if words[:1] == ["doctor"] and (len(words) < 2 or words[1] not in VERBS):
        return ["doctor", "machine", *words[1:]]
    return words


app = group("doctor", "Look at this machine before a run.")


@verb(app, MACHINE, passes_flags=True)
def machine(
    context: Context,
    json: bool = Option(False, "--json", help="print one JSON object instead"),
    expect_gpus: int | None = Option(None, min=0, metavar="N",
        help="on each node (default: what Slurm gave)"),
) -> None:  # fmt: skip
    """Is this machine fit for a run, and how fast is it? The default."""
    from harness.doctor.arguments import read_config

    config = read_config(context.args)  # a typo is refused before torch is imported
    from harness.doctor import machine

    sys.exit(machine.check_machine(config, context.args, expect_gpus=expect_gpus, as_json=json))


@verb(app, epilog="exit codes: 0 good or yellow, 1 red, 2 bad input")
def nodes(
    files: list[Path] = Argument(metavar="FILE", help="what harness doctor --json printed"),
) -> None:
    """Join the reports of several nodes, and name the outliers."""
    from harness.doctor import nodes

    sys.exit(nodes.join(files))


@verb(app, epilog=RESUME, passes_flags=True)
def resume(
    context: Context,
    ranks: int | None = Option(None, min=1, metavar="N",
        help="default: one per GPU, or 3 on the CPU"),
    steps: int = Option(60, min=1, help="of each run"),
    kills: int = Option(5, min=1, help="in all"),
    seed: int = Option(0, help="of the kills"),
    keep: Path | None = Option(None, metavar="DIR", help="keep runs and logs, in a new DIR"),
    loss_bound_pct: float = Option(2.0, metavar="PCT",
        help="on a GPU with engine.deterministic off: how far losses may differ"),
) -> None:  # fmt: skip
    """Whether a run that is killed ends in the same bits as one that is not."""
    from harness.doctor.chaos import resume

    sys.exit(
        resume.check(
            context.args, ranks=ranks, steps=steps, kills=kills, seed=seed, keep=keep,
            loss_bound_pct=loss_bound_pct,
        )
    )  # fmt: skip
