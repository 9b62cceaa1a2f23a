"""What may be published: run folders, and names that tell the runs apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from harness.errors import BadInput
from harness.results import wandb
from harness.results.load import LoadedRun, load_run
from harness.results.measured import Measured
from harness.results.source import REF, folders_at, measured


def folders(addresses: Sequence[str], to: str) -> list[tuple[LoadedRun, Measured]]:
    """The finished runs whose folders are given, each once, with all rows and as compared.

    Args:
        to: where to; it needs more of a run than other sources hold.

    Raises:
        BadInput: something else is given, or a run has not finished.
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
    """What is written under a run's name must not hold two.

    Raises:
        BadInput: two runs are called the same.
    """
    name, number = Counter(names).most_common(1)[0]
    if number > 1:
        raise BadInput(f"{name}: {number} of these runs are called so; give one of them at a time")
