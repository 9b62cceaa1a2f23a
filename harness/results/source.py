"""Read runs and published results from addresses, with one syntax for all commands.

runs/a-s0, 'runs/a-s*'                       run folders
wandb:entity/project/run_id                  a run in W&B
wandb:entity/project?group=G&tag=T           several; also name, job_type, state
runs/a-s0/wandb/offline-run-...              what W&B's client wrote offline
ref:goyal2017-resnet50-b256                  a published result
"""

from __future__ import annotations

import gc
import glob
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import BadInput
from harness.results import load, wandb
from harness.results.load import LoadedRun, load_run
from harness.results.measured import Measured, train_and_val
from harness.results.references import Reference, find, load_references

REF = "ref:"
ENDED = {"stopped": "stopped", load.SILENT: "killed or has lost its disk"}


def reference(address: str) -> Reference | None:
    """Return the published result at an address; None if it is an address of runs.

    Raises:
        BadInput: no such reference; names the nearest.
    """
    if not address.startswith(REF):
        return None
    return find(load_references(), address.removeprefix(REF), "ref: no reference")


def runs_at(address: str) -> list[Measured]:
    """Return the finished runs at an address, sorted by name.

    Raises:
        BadInput: there is none, one has not finished or cannot be read, or W&B does not answer.
    """
    if address.startswith(REF):
        raise BadInput(f"{address}: is a published result, where runs are needed")
    if address.startswith(wandb.ADDRESS):
        from harness.results.wandb import api

        return api.runs_at(address)
    with _no_garbage_collection():
        return [_read(path) for path in folders_at(address)]


def runs_at_all(addresses: Iterable[str]) -> list[Measured]:
    """Return the finished runs at all addresses, without duplicates.

    Raises:
        BadInput: an address cannot be read.
    """
    return list({run.address: run for address in addresses for run in runs_at(address)}.values())


def _read(path: Path) -> Measured:
    if any(path.glob("*.wandb")):
        from harness.results.wandb import offline

        return offline.read(path)
    return measured(load_run(path))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Pause the garbage collector: it would search many rows, which have no cycles, for cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def folders_at(address: str) -> list[Path]:
    """Return the folders that a path or a glob names.

    Raises:
        BadInput: there is none.
    """
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
        raise BadInput(f"{path}: {_why_no_result(run)}")
    config = load.last_config(load.config_of(path), run.result.attempts)
    train, val = train_and_val(run.rows)
    result = run.result.model_dump()
    return Measured(str(path), path.name, config, load.environment(path), result, train, val)


def _why_no_result(run: LoadedRun) -> str:
    at = f" at epoch {run.rows[-1].epoch:.2f}" if run.rows else ""
    if run.failure is not None:
        return f"has failed{at} ({run.failure.message}): start it again, then compare"
    if run.state in ("stopped", load.SILENT):
        return f"was {ENDED[run.state]}{at}: give its command again to finish it, then compare"
    return f"is {run.state}{at}: compare it when it has finished"
