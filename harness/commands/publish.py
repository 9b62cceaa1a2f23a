"""`harness publish`: finished runs into W&B, or MLPerf's log format."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from typer import Argument, Option

from harness.commands.parser import group, verb
from harness.errors import BadInput
from harness.system.console import count, out, track

DESCRIPTION = """\
Take finished runs to where others look at them.

  harness publish runs/a-s* --to wandb                    trained offline? now W&B has them
  harness publish runs/a-s0 --to wandb --mode offline     for a later `wandb sync`
  harness publish --to wandb-view --project bench         panels that compare what is there
  harness publish runs/a-s* --to mllog --out logs/        an MLPerf training log per run

wandb: what the run itself would have written, under the run's own id and the group of its cell
(all but the seed); a second time, nothing is left to do."""

BELONGS = {
    "wandb": {"project", "entity", "mode"},
    "wandb-view": {"project", "entity"},
    "mllog": {"out"},
}
"""Where to -> the options that belong to it."""

app = group()


@verb(app, DESCRIPTION)
def publish(
    addresses: list[str] = Argument([], metavar="RUN", help="run folder or glob"),
    to: Literal["wandb", "wandb-view", "mllog"] = Option(help="where to"),
    project: str | None = Option(None,
        help="W&B project (the run's log.project; for a view the default of log.project)"),
    entity: str | None = Option(None, help="W&B user or team (the run's log.entity, or your own)"),
    mode: Literal["online", "offline"] | None = Option(None,
        help="wandb: send now (default), or write for `wandb sync` into the run folder"),
    folder: Path | None = Option(None, "--out", metavar="DIR", help="mllog: a new folder"),
) -> None:  # fmt: skip
    """Publish finished runs into W&B, a W&B workspace, or MLPerf logs."""
    belong = BELONGS[to]
    for name, value in {"project": project, "entity": entity, "mode": mode, "out": folder}.items():
        if value is not None and name not in belong:
            has = ", ".join(f"--{each}" for each in sorted(belong))
            raise BadInput(f"--{name}: does not belong to --to {to}, which has {has}")
    if to == "wandb-view":
        if addresses:
            raise BadInput("--to wandb-view: shows all runs of a project; name no run")
        _view(project, entity)
        return
    if "out" in belong and folder is None:
        raise BadInput(f"--to {to}: name a new folder: --out DIR")
    if not addresses:
        raise BadInput(f"--to {to}: name at least one run folder; list them: harness show runs")
    if folder is None:
        _wandb(addresses, mode or "online", project, entity)
    else:
        _mllog(addresses, folder)


def _wandb(
    addresses: list[str], mode: Literal["online", "offline"], own: str | None, user: str | None
) -> None:
    from harness.results.publish import publish, publish_wandb

    runs = publish.folders(addresses, "wandb")
    done = []
    for run, known in track(runs, total=len(runs), what="publishing"):
        each = publish_wandb.to_wandb(run, known, mode, own, user)
        out.print(f"{run.path.name}: {each.said}: {each.where}")
        done.append(each)
    groups, places = {each.group for each in done}, {each.place for each in done}
    said = f"{count(len(done), 'run')} in {count(len(groups), 'group')}"
    if mode == "offline":
        out.print(f"{said}, written but not sent: give each its `wandb sync`, above")
        return
    # Without a project of one's own there may be several, each with its own panels.
    entity, _, project = str(done[-1].place).partition("/")
    view = f"harness publish --to wandb-view --project {project} --entity {entity}"
    out.print(f"{said}, in {', '.join(sorted(map(str, places)))}; panels that compare them: {view}")


def _view(project: str | None, entity: str | None) -> None:
    from harness.config import Log
    from harness.results.publish.publish_view import NAME, save_view

    url = save_view(project or Log().project, entity)
    out.print(f"workspace {NAME}: {url}; W&B lists it under the project's saved views")


def _mllog(addresses: list[str], folder: Path) -> None:
    from harness.results.publish import publish
    from harness.results.publish.publish_mllog import RULES, to_mllog

    runs = publish.folders(addresses, "mllog")
    to_mllog(runs, folder)
    check = f"python -m mlperf_logging.compliance_checker --usage training --ruleset {RULES}"
    out.print(f"{count(len(runs), 'log')} in {folder}; check one with: {check} FILE")
