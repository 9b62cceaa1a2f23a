"""Finished runs into W&B, from their folders: what the live mirror writes, through the mirror.

What W&B has of a run cannot be taken back: rows are only ever added, a run that was deleted does
not give its id free, and one that is begun anew under its old id may keep old rows beside new ones
(wandb/wandb issues 3424, 6216). So a run is looked up first, and one of four things is done:

- W&B has all of it: nothing.
- It has none of it: all is sent.
- It has the first rows, or another result, group or state: the rest is sent, under the same id.
- It has other rows: this is refused, since they would stay. Another project is free of them.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.errors import BadInput
from harness.logging import wandb_run
from harness.logging.schema import ROW_KEYS
from harness.logging.wandb import WandbMirror
from harness.logging.wandb_run import result_for_wandb, row_for_wandb
from harness.results.load import LoadedRun
from harness.results.measured import Measured
from harness.results.wandb import api as wandb_api
from harness.system.console import count

FINISH_S = 120.0
SETTINGS = {
    "finish_timeout": 100.0,
    # The machine that publishes is not the one that trained.
    "x_disable_stats": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
}
"""Over those of the live mirror: nobody waits at a barrier for this."""


@dataclass(frozen=True)
class Published:
    """What was done with a run.

    Attributes:
        said: in words.
        where: page in W&B; offline, the command that uploads it.
        group: of the run in W&B.
        place: its entity and project there, `lab/bench`; none offline.
    """

    said: str
    where: str
    group: str
    place: str | None


def to_wandb(
    run: LoadedRun, known: Measured, mode: Literal["online", "offline"],
    project: str | None, entity: str | None,
) -> Published:  # fmt: skip
    """Have W&B hold a run as its folder tells it; a second time, nothing is left to do.

    Args:
        known: the same run, as runs are compared.
        mode: offline writes into the run folder what `wandb sync` uploads.
        project, entity: by default the run's own.

    Raises:
        BadInput: W&B holds other rows, or does not take these.
    """
    wanted = _mirrored(run, known) | {
        "project": project or known.config.log.project,
        "entity": entity or known.config.log.entity,
    }
    if mode == "offline":
        return _send(run, known, wanted, mode, "written")
    with wandb_api.client(str(run.path)) as api:
        wanted["entity"] = wandb_api.entity_of(api, wanted["entity"])
        place = f"{wanted['entity']}/{wanted['project']}"
        there = wandb_api.run_at(api, f"{place}/{wanted['run_id']}")
        if there is None:
            said = f"sent, {count(len(run.rows), 'row')}"
        elif missing := _missing(there, run, known, wanted):
            said = f"completed, {missing}"
        else:
            return Published("is there already", there.url, wanted["group"], place)
    return _send(run, known, wanted, mode, said, place)


def _mirrored(run: LoadedRun, known: Measured) -> dict[str, Any]:
    """What the live mirror said of this run when it last began."""
    result = known.result
    about = wandb_run.about(
        known.config,
        known.environment,
        world_size=result["world_size"],
        precision=result["precision"],
        peak_lr=result["peak_lr"],
    )
    return about | {"run_id": result["run_id"], "name": run.path.name}


def _missing(there: Any, run: LoadedRun, known: Measured, wanted: Mapping[str, Any]) -> str | None:
    """What W&B lacks of a run that it has, in words.

    Raises:
        BadInput: it has other rows.
    """
    names = frozenset(ROW_KEYS.values())
    rows = [_only(row, names) for row in wandb_api.history(there)]
    if (same := _first_alike(rows, run)) < len(rows):
        raise BadInput(
            f"{run.path}: W&B has other rows of this run, from row {same + 1} on, which would "
            f"stay: {there.url}; publish it into another --project"
        )
    if lacking := len(run.rows) - len(rows):
        return f"{lacking:,} of {count(len(run.rows), 'row')} were missing"
    # Of the result only what is in it: what another version of it had more cannot be taken away.
    result = result_for_wandb(known.result)
    told = {"group": there.group, "job_type": there.job_type, "name": there.name}
    differs = {
        "its result": not _alike(_only(dict(there.summary.items()), result), result),
        "its end": there.state != "finished",
        **{f"its {key}": value != wanted[key] for key, value in told.items()},
    }
    return next((f"{what} was not up to date" for what, differ in differs.items() if differ), None)


def _first_alike(rows: list[dict[str, Any]], run: LoadedRun) -> int:
    """How many of W&B's rows are the run's, up to the first that is not."""
    sent = (row_for_wandb(row.model_dump()) for row in run.rows)
    pairs = enumerate(zip(rows, sent, strict=False))
    most = min(len(rows), len(run.rows))
    return next((number for number, (a, b) in pairs if not _alike(a, b)), most)


def _only(row: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: row[name] for name in names if row.get(name) is not None}


def _alike(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two rows or summaries say the same; numbers may have been rounded on the way."""
    return a.keys() == b.keys() and all(
        math.isclose(a[key], b[key], rel_tol=1e-9)
        if isinstance(a[key], int | float) and isinstance(b[key], int | float)
        else a[key] == b[key]
        for key in a
    )


def _send(
    run: LoadedRun,
    known: Measured,
    wanted: dict[str, Any],
    mode: Literal["online", "offline"],
    said: str,
    place: str | None = None,
) -> Published:
    with ExitStack() as stack:
        scratch = run.path
        if mode == "online":  # what the client keeps is of no use when W&B has it
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        mirror = WandbMirror(
            mode=mode, folder=scratch, rows=run.path / "rows.jsonl", settings=SETTINGS, **wanted
        )
        mirror.release(len(run.rows))
        status = mirror.finish(known.result, exit_code=0, timeout_s=FINISH_S)
    if status != mode:
        raise BadInput(f"{run.path}: W&B did not take it: {status}; give the command again")
    where = (mirror.url if mode == "online" else mirror.sync_command) or ""
    return Published(said, where, wanted["group"], place)
