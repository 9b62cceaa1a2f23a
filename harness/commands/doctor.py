"""The verb `harness doctor`: check this machine, and that a killed run resumes exactly."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from typer import Argument, Context, Option

from harness.commands.parser import group, verb

if TYPE_CHECKING:
    from harness.config import Config

MACHINE = """\
Check whether this machine is fit for the run, and how fast it is: GPUs, software, cores, limits,
disks, data, network. Takes under a minute and leaves nothing behind.

CONFIG.yaml and --section.key as launch/train.py takes them; by default the quickstart.

also:
  torchrun --nproc-per-node 8 -m harness doctor ...   all ranks of a job and their network
  harness doctor nodes FILE...   join the --json output of several nodes; name the outliers
  harness doctor resume          check that a killed run ends in the same bits (see its --help)

exit codes: 0 good or yellow, 1 red, 2 bad input"""

RESUME = """\
CONFIG.yaml and --section.key as launch/train.py takes them; by default the quickstart. Exit codes:
0 the same, 1 not the same, 2 bad input, 3 cannot tell."""


def with_default_verb(argv: list[str]) -> list[str]:
    """Return the arguments with `machine` after `doctor`, where no verb is given."""
    # Typer would take the CONFIG after `doctor` for a verb.
    if argv[:1] == ["doctor"] and argv[1:2] not in (["machine"], ["resume"], ["nodes"]):
        return ["doctor", "machine", *argv[1:]]
    return argv


def read_config(args: Sequence[str]) -> "Config":
    """Return the config that the arguments describe; imports no torch.

    It may lack folders of images: everything but the data can be checked without them.

    Raises:
        BadInput: no such file, unknown key, wrong type, out of range, contradiction.
    """
    from harness.config import load
    from harness.config.rules import check

    config = load.read(args, prog="harness doctor")
    folders = {name: getattr(config.data, name) or "demo" for name in ("train", "val")}
    check(config.model_copy(update={"data": config.data.model_copy(update=folders)}))
    return config


app = group("doctor", "Look at this machine before a run.")


@verb(app, MACHINE, passes_flags=True)
def machine(
    context: Context,
    json: bool = Option(False, "--json", help="print one JSON object instead"),
    expect_gpus: int | None = Option(None, min=0, metavar="N",
        help="number on each node (default: as many as Slurm allocated)"),
) -> None:  # fmt: skip
    """Check whether this machine is fit for a run, and how fast it is; the default."""
    config = read_config(context.args)  # checked before torch is imported
    from harness.doctor import machine

    sys.exit(machine.check_machine(config, context.args, expect_gpus=expect_gpus, as_json=json))


@verb(app, epilog="exit codes: 0 good or yellow, 1 red, 2 bad input")
def nodes(
    files: list[Path] = Argument(metavar="FILE", help="output of harness doctor --json"),
) -> None:
    """Join the reports of several nodes in one table, and name the outliers."""
    from harness.doctor import nodes

    sys.exit(nodes.join(files))


@verb(app, epilog=RESUME, passes_flags=True)
def resume(
    context: Context,
    ranks: int | None = Option(None, min=1, metavar="N",
        help="default: one per GPU, or 3 on the CPU"),
    steps: int = Option(60, min=1, help="steps of each run"),
    kills: int = Option(5, min=1, help="number of kills in total"),
    seed: int = Option(0, help="seed that sets when runs are killed"),
    keep: Path | None = Option(None, metavar="DIR", help="keep runs and logs, in a new DIR"),
    loss_bound_pct: float = Option(2.0, metavar="PCT",
        help="on a GPU with engine.deterministic off: how far losses may differ"),
) -> None:  # fmt: skip
    """Check that a run that is killed and resumed ends in the same bits as one that is not."""
    from harness.doctor.chaos import resume

    code = resume.check(
        context.args, ranks=ranks, steps=steps, kills=kills, seed=seed, keep=keep,
        loss_bound_pct=loss_bound_pct,
    )  # fmt: skip
    sys.exit(code)
