"""The verb `harness publish`: send finished runs to W&B, or write MLPerf logs."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from typer import Argument, Option

from harness.commands.parser import group, verb
from harness.errors import BadInput
from harness.system.console import count, out
from harness.system.progress import track

if TYPE_CHECKING:
    from harness.results.load import LoadedRun
    from harness.results.measured import Measured

DESCRIPTION = """\
Send finished runs to W&B, or write them in MLPerf's log format.

  harness publish runs/a-s* --to wandb                    send runs that were trained offline
  harness publish runs/a-s0 --to wandb --mode offline     write them for `wandb sync`
  harness publish --to wandb-view --project bench         save panels that compare runs
  harness publish runs/a-s* --to mllog --out logs/        an MLPerf training log per run

wandb: sends what live logging would have sent, under the run's own id. Runs that differ only in
the seed are one group. A second call has nothing to do."""

BELONGS = {"wandb": "entity mode project", "wandb-view": "entity project", "mllog": "out"}
"""Value of --to -> the options that belong to it, in alphabetical order."""

app = group()


@verb(app, DESCRIPTION)
def publish(
    addresses: list[str] = Argument([], metavar="RUN", help="run folder or glob"),
    to: Literal["wandb", "wandb-view", "mllog"] = Option(help="where to"),
    project: str | None = Option(None,
        help="W&B project (default: the run's log.project; for a view WANDB_PROJECT, or that "
        "setting's default)"),
    entity: str | None = Option(None,
        help="W&B user or team (default: the run's log.entity, or your own)"),
    mode: Literal["online", "offline"] | None = Option(None,
        help="wandb: send now (default), or write for `wandb sync` into the run folder"),
    folder: Path | None = Option(None, "--out", metavar="DIR", help="mllog: a new folder"),
) -> None:  # fmt: skip
    """Send finished runs to W&B, save a W&B workspace, or write MLPerf logs."""
    allowed = BELONGS[to].split()
    for name, value in {"project": project, "entity": entity, "mode": mode, "out": folder}.items():
        if value is not None and name not in allowed:
            has = ", ".join(f"--{option}" for option in allowed)
            raise BadInput(f"--{name}: does not belong to --to {to}, which has {has}")
    if to == "wandb-view":
        if addresses:
            raise BadInput("--to wandb-view: shows all runs of a project; name no run")
        from harness.config import load
        from harness.results.publish.publish_view import NAME, save_view

        _may_send(to)
        url = save_view(project or load.read([], prog="harness publish").log.project, entity)
        out.print(f"workspace {NAME}: {url}; W&B lists it under the project's saved views")
        return
    if to == "mllog" and folder is None:
        raise BadInput(f"--to {to}: name a new folder: --out DIR")
    if not addresses:
        raise BadInput(f"--to {to}: name at least one run folder; list them: harness show runs")
    from harness.results.source import finished_runs

    runs = finished_runs(addresses, to)
    if folder is None:
        if mode is None:
            _may_send(to)
        _wandb(runs, mode or "online", project, entity)
        return
    from harness.results.publish.publish_mllog import RULES, to_mllog

    to_mllog(runs, folder)
    check = f"python -m mlperf_logging.compliance_checker --usage training --ruleset {RULES}"
    out.print(f"{count(len(runs), 'log')} in {folder}; check one with: {check} FILE")


def _may_send(to: str) -> None:
    """Refuse to send where W&B's own switches say that nothing is sent."""
    from harness.config import wandb_says

    if (asked := wandb_says.mode(os.environ)) and asked[0] != "online":
        instead = ", or give --mode online or offline" if to == "wandb" else ""
        raise BadInput(f"--to {to}: {asked[1]} says that nothing is sent; unset it{instead}")


def _wandb(
    runs: list[tuple["LoadedRun", "Measured"]], mode: Literal["online", "offline"],
    project: str | None, entity: str | None,
) -> None:  # fmt: skip
    from harness.results.publish.publish_wandb import to_wandb

    done = []
    for run, known in track(runs, total=len(runs), what="publishing"):
        done.append(to_wandb(run, known, mode, project, entity))
        out.print(f"{run.path.name}: {done[-1].action}: {done[-1].where}")
    summary = f"{count(len(done), 'run')} in {count(len({each.group for each in done}), 'group')}"
    if mode == "offline":
        out.print(f"{summary}, written but not sent: run each `wandb sync` above")
        return
    # Without --project, runs may go to several projects; the hint names the last one's.
    last_entity, _, last_project = str(done[-1].place).partition("/")
    view = f"harness publish --to wandb-view --project {last_project} --entity {last_entity}"
    where = ", ".join(sorted({str(result.place) for result in done}))
    out.print(f"{summary}, in {where}; panels that compare them: {view}")
