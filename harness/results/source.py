"""Read runs and published results from addresses, with one syntax for all commands.

runs/a-s0, 'runs/a-s*'                       run folders
wandb:entity/project/run_id                  a run in W&B
wandb:entity/project?group=G&tag=T           several; also name, job_type, state
runs/a-s0/wandb/offline-run-...              what W&B's client wrote offline
ref:goyal2017-resnet50-b256                  a published result
"""

import glob
from collections.abc import Sequence
from pathlib import Path

from harness.errors import BadInput
from harness.results import load
from harness.results.load import LoadedRun, load_run
from harness.results.measured import TRAIN_COLUMNS, VAL_COLUMNS, Measured, columns
from harness.results.references import Reference, find, load_references
from harness.results.wandb import api, rows
from harness.run_folder.folder import config_of

REF = "ref:"
ENDED = {"stopped": "stopped", load.SILENT: "killed or has lost its disk"}


def reference(address: str) -> Reference | None:
    """Return the published result at `ref:ID`, None for runs; raise BadInput if it is unknown."""
    if not address.startswith(REF):
        return None
    return find(load_references(), address.removeprefix(REF), "ref: no reference")


def runs_at(*addresses: str) -> list[Measured]:
    """Return the finished runs at the addresses, those of each sorted by name; none twice.

    Raises:
        BadInput: there is none, one has not finished or cannot be read, or W&B does not answer.
    """
    runs: list[Measured] = []
    for address in addresses:
        if address.startswith(REF):
            raise BadInput(f"{address}: is a published result, where runs are needed")
        if address.startswith(api.ADDRESS):
            runs += api.runs_at(address)
        else:
            for path in folders_at(address):
                offline = is_of_wandb(path)
                runs.append(rows.read_offline(path) if offline else measured(load_run(path)))
    return list({run.address: run for run in runs}.values())


def is_of_wandb(folder: Path) -> bool:
    """Return whether W&B's client wrote a folder, offline."""
    return any(folder.glob("*.wandb"))


def finished_runs(addresses: Sequence[str], to: str) -> list[tuple[LoadedRun, Measured]]:
    """Return the finished runs of the given folders, without duplicates, in both forms.

    Raises:
        BadInput: an address is not a run folder, or a run has not finished; names --to.
    """
    paths = {}
    for address in addresses:
        if address.startswith((REF, api.ADDRESS)):
            raise BadInput(f"{address}: --to {to} takes run folders only")
        for path in folders_at(address):
            if is_of_wandb(path):
                raise BadInput(
                    f"{path}: is a folder of W&B's client; give the run folder that it lies in, "
                    f"or upload it: wandb sync {path}"
                )
            paths[path.resolve()] = path
    return [(run := load_run(path), measured(run)) for path in paths.values()]


def folders_at(address: str) -> list[Path]:
    """Return the folders that a path or a glob names; raise BadInput if there is none."""
    if Path(address).is_dir():
        return [Path(address)]
    paths = sorted(path for name in glob.glob(address) if (path := Path(name)).is_dir())
    if not paths:
        raise BadInput(f"{address}: no such run folder; list them with: harness show runs")
    return paths


def measured(run: LoadedRun) -> Measured:
    """Return a loaded run in the form in which runs are compared.

    Raises:
        BadInput: it has not finished, or its config or environment is of another version.
    """
    path = run.path
    if run.result is None:
        at = f" at epoch {run.rows[-1].epoch:.2f}" if run.rows else ""
        why = f"is {run.state}{at}: compare it when it has finished"
        if run.failure is not None:
            why = f"has failed{at} ({run.failure.message}): start it again, then compare"
        elif run.state in ENDED:
            why = f"was {ENDED[run.state]}{at}: give its command again to finish it, then compare"
        raise BadInput(f"{path}: {why}")
    config = load.last_config(config_of(path), run.result.attempts)
    return Measured(
        str(path), path.name, config, load.environment(path), run.result.model_dump(),
        columns((row.__dict__ for row in run.rows if row.kind == "train"), TRAIN_COLUMNS),
        columns((row.__dict__ for row in run.rows if row.kind == "val"), VAL_COLUMNS),
    )  # fmt: skip
