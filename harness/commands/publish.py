"""`harness publish`: finished runs into W&B, or MLPerf's log format."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from harness.commands.parser import teaching
from harness.config import Log
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

WORDS = {
    "wandb": {"project", "entity", "mode"},
    "wandb-view": {"project", "entity"},
    "mllog": {"out"},
}
"""Where to -> the options that belong to it."""


def add(verbs: Any) -> None:
    """The verb's words."""
    says = "finished runs into W&B, a W&B workspace, or MLPerf logs"
    publish = teaching(verbs, "publish", help=says, description=DESCRIPTION)
    publish.add_argument("addresses", nargs="*", metavar="RUN", help="run folder or glob")
    publish.add_argument("--to", required=True, choices=tuple(WORDS), help="where to")
    publish.add_argument(
        "--project", help=f"W&B project (the run's log.project; for a view {_default_project()})"
    )
    publish.add_argument("--entity", help="W&B user or team (the run's log.entity, or your own)")
    publish.add_argument(
        "--mode", choices=("online", "offline"),
        help="wandb: send now (default), or write for `wandb sync` into the run folder",
    )  # fmt: skip
    publish.add_argument("--out", type=Path, metavar="DIR", help="mllog: a new folder")
    publish.set_defaults(verb=_publish)


def _default_project() -> str:
    return Log().project


def _publish(options: argparse.Namespace) -> None:
    to, belong = options.to, WORDS[options.to]
    for word in ("project", "entity", "mode", "out"):
        if getattr(options, word) is not None and word not in belong:
            has = ", ".join(f"--{each}" for each in sorted(belong))
            raise BadInput(f"--{word}: does not belong to --to {to}, which has {has}")
    if "out" in belong and options.out is None:
        raise BadInput(f"--to {to}: name a new folder: --out DIR")
    if to == "wandb-view" and options.addresses:
        raise BadInput("--to wandb-view: shows all runs of a project; name no run")
    if to != "wandb-view" and not options.addresses:
        raise BadInput(f"--to {to}: name at least one run folder; list them: harness show runs")
    does: dict[str, Callable[[argparse.Namespace], None]] = {
        "wandb": _wandb, "wandb-view": _view, "mllog": _mllog,
    }  # fmt: skip
    does[to](options)


def _wandb(options: argparse.Namespace) -> None:
    from harness.results.publish import publish, publish_wandb

    runs = publish.folders(options.addresses, "wandb")
    mode: Literal["online", "offline"] = options.mode or "online"
    done = []
    for run, known in track(runs, total=len(runs), what="publishing"):
        each = publish_wandb.to_wandb(run, known, mode, options.project, options.entity)
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


def _view(options: argparse.Namespace) -> None:
    from harness.results.publish.publish_view import NAME, save_view

    url = save_view(options.project or _default_project(), options.entity)
    out.print(f"workspace {NAME}: {url}; W&B lists it under the project's saved views")


def _mllog(options: argparse.Namespace) -> None:
    from harness.results.publish import publish
    from harness.results.publish.publish_mllog import RULES, to_mllog

    runs = publish.folders(options.addresses, "mllog")
    to_mllog(runs, options.out)
    check = f"python -m mlperf_logging.compliance_checker --usage training --ruleset {RULES}"
    out.print(f"{count(len(runs), 'log')} in {options.out}; check one with: {check} FILE")
