"""Send finished runs from their folders to W&B, exactly as live logging would have done.

W&B cannot remove what it has: rows are only ever added, the id of a deleted run stays taken, and a
run that is restarted under its old id may keep old rows next to new ones (wandb/wandb issues 3424,
6216). So the run is looked up in W&B first:

- If W&B has all of it, nothing is sent.
- If W&B has none of it, all is sent.
- If W&B has only the first rows, or another result, group or state, the rest is sent.
- If W&B has other rows, which would stay, publishing is refused; another project is free of them.
"""

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

from harness.config import wandb_says
from harness.errors import BadInput
from harness.logging import wandb_run
from harness.logging.schema import ROW_KEYS
from harness.logging.wandb import WandbMirror
from harness.logging.wandb_run import result_for_wandb, row_for_wandb
from harness.results.load import LoadedRun
from harness.results.measured import Measured
from harness.results.wandb import api as wandb_api
from harness.system.console import count

SETTINGS = {
    "finish_timeout": 100.0,
    # The machine that publishes is not the one that trained.
    **dict.fromkeys(("x_disable_stats", "x_disable_meta", "x_disable_machine_info"), True),
}
"""Added to the settings of live logging; the timeout may be longer, as no other rank waits."""
Mode = Literal["online", "offline"]


class Published(NamedTuple):
    """What was done with a run."""

    action: str
    where: str  # URL in W&B; offline, the command that uploads it
    group: str
    place: str | None  # entity and project, such as `lab/bench`; None offline


def to_wandb(
    run: LoadedRun, known: Measured, mode: Mode, project: str | None, entity: str | None
) -> Published:
    """Send to W&B what it lacks of a run; a second call has nothing to do.

    The mode `offline` writes files for `wandb sync` into the run folder. Project and entity are by
    default those of the run's config.

    Raises:
        BadInput: W&B has other rows of this run, or does not accept these.
    """
    resolved = {name: known.result[name] for name in ("world_size", "precision", "peak_lr")}
    wandb_says.refuse_other_run(run.path, os.environ)
    about = wandb_run.about(known.config, known.environment, **resolved)
    wanted = (
        {"name": run.path.name}
        | about
        | {  # what live logging passed to W&B when the run last started
            "run_id": known.result["run_id"],
            "project": project or known.config.log.project,
            "entity": entity or known.config.log.entity,
        }
    )
    if mode == "offline":
        return Published("written", _send(run, known, wanted, mode), wanted["group"], None)
    with wandb_api.client(str(run.path)) as api:
        wanted["entity"] = wandb_api.entity_of(api, wanted["entity"])
        place = f"{wanted['entity']}/{wanted['project']}"
        remote = wandb_api.run_at(api, f"{place}/{wanted['run_id']}")
        missing = remote and _missing(remote, run, known, wanted)
    if remote and not missing:
        return Published("is there already", remote.url, wanted["group"], place)
    action = f"completed, {missing}" if remote else f"sent, {count(len(run.rows), 'row')}"
    return Published(action, _send(run, known, wanted, mode), wanted["group"], place)


def _missing(remote: Any, run: LoadedRun, known: Measured, wanted: Mapping[str, Any]) -> str | None:
    """Return a text that says what W&B lacks of a run; None if it has everything."""
    names = frozenset(ROW_KEYS.values())
    rows = [_only(row, names) for row in wandb_api.history(remote)]
    sent = [row_for_wandb(row.model_dump()) for row in run.rows]
    pairs = enumerate(zip(rows, sent, strict=False))
    same = next((n for n, pair in pairs if not _equal(*pair)), min(len(rows), len(sent)))
    if same < len(rows):
        raise BadInput(
            f"{run.path}: W&B has other rows of this run, from row {same + 1} on, which would "
            f"stay: {remote.url}; publish it into another --project"
        )
    if lacking := len(sent) - len(rows):
        return f"{lacking:,} of {count(len(sent), 'row')} were missing"
    # Compare only fields of this result: more fields of an older version cannot be removed.
    result = result_for_wandb(known.result)
    labels = ("group", "job_type", "name")
    differs = {
        "its result": not _equal(_only(dict(remote.summary.items()), result), result),
        "its end": remote.state != "finished",
        **{f"its {label}": getattr(remote, label) != wanted[label] for label in labels},
    }
    return next((f"{what} was not up to date" for what, differ in differs.items() if differ), None)


def _only(row: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: row[name] for name in names if row.get(name) is not None}


def _equal(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        math.isclose(a[key], b[key], rel_tol=1e-9)
        if isinstance(a[key], int | float) and isinstance(b[key], int | float)
        else a[key] == b[key]
        for key in a
    )


def _send(run: LoadedRun, known: Measured, wanted: dict[str, Any], mode: Mode) -> str:
    with TemporaryDirectory() as scratch:  # for files of the client, not needed after that
        mirror = WandbMirror(
            mode=mode, folder=Path(scratch) if mode == "online" else run.path,
            rows=run.path / "rows.jsonl", settings=SETTINGS, **wanted,
        )  # fmt: skip
        mirror.release(len(run.rows))
        status = mirror.finish(known.result, exit_code=0, timeout_s=120.0)
    if status != mode:
        raise BadInput(f"{run.path}: W&B did not take it: {status}; give the command again")
    return (mirror.url if mode == "online" else mirror.sync_command) or ""
