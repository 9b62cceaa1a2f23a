"""Check what is to be published: finished run folders with distinct names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from harness.errors import BadInput
from harness.results import wandb
from harness.results.load import LoadedRun, load_run
from harness.results.measured import Measured
from harness.results.source import REF, folders_at, measured


def finished_runs(addresses: Sequence[str], to: str) -> list[tuple[LoadedRun, Measured]]:
    """Return the finished runs of the given folders, without duplicates, in both forms.

    Args:
        to: the value of --to, for error messages.

    Raises:
        BadInput: an address is not a run folder, or a run has not finished.
    """
    paths = {}
    for address in addresses:
        if address.startswith((REF, wandb.ADDRESS)):
            raise BadInput(f"{address}: --to {to} takes run folders only")
        for path in folders_at(address):
            if any(path.glob("*.wandb")):
                raise BadInput(
                    f"{path}: is a folder of W&B's client; give the run folder that it lies in, "
                    f"or upload it: wandb sync {path}"
                )
            paths[path.resolve()] = path
    runs = [load_run(path) for path in paths.values()]
    return [(run, measured(run)) for run in runs]


def check_names(names: Iterable[str]) -> None:
    """Check that the names are distinct, as each run is written under its name.

    Raises:
        BadInput: two runs have the same name.
    """
    name, number = Counter(names).most_common(1)[0]
    if number > 1:
        raise BadInput(f"{name}: {number} of these runs have this name; give one of them at a time")
