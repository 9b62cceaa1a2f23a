"""The records of `harness doctor`: a check's result, a rank's facts, the run that is planned."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pydantic.dataclasses
from pydantic import ConfigDict

from harness.config import Config
from harness.distributed import World
from harness.errors import HarnessError
from harness.system.deadline import NoAnswer, within
from harness.system.process import core_share

Status = Literal["not checked", "green", "yellow", "red"]
SEVERITY: dict[Status, int] = {"not checked": 0, "green": 1, "yellow": 2, "red": 3}

Facts = dict[str, Any]
"""What one rank measured: `name_unit` -> a plain value that JSON can hold."""


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Check:
    """The result of one check: a line of the table.

    Yellow: the run works, but slower or with less than possible. Red: it would fail or give wrong
    results.
    """

    name: str
    status: Status
    value: str  # what was measured, as text; for `not checked`, the reason
    do: str = ""  # what the user should do if the status is yellow or red
    host: str = ""  # that was checked; empty if the check concerns all hosts together


@dataclass(frozen=True)
class PlannedRun:
    """The run that this machine is checked for."""

    config: Config
    world: World  # this process among the ranks that do the checks
    gpus: int  # expected on this node
    environ: Mapping[str, str]  # the launcher's environment variables

    @property
    def wants_gpu(self) -> bool:
        """Whether the run uses a GPU if there is one."""
        return self.config.engine.device != "cpu"

    @property
    def cores(self) -> float:
        """CPU cores of each rank of the run, even if only this process runs the checks."""
        ranks = self.world.local_size
        return core_share(ranks) * ranks / self.local_ranks

    @property
    def loader_threads(self) -> int:
        """Threads or workers with which each rank reads and decodes."""
        return self.config.data.threads or max(1, int(self.cores))

    @property
    def local_ranks(self) -> int:
        """Ranks of the run on this node, even if only this process runs the checks."""
        return max(self.world.local_size, self.gpus if self.world.on_gpu else 0)

    @property
    def ranks(self) -> int:
        """Ranks of the run on all nodes."""
        if "RANK" in self.environ:
            return self.world.size
        return self.local_ranks * (number_in(self.environ, "SLURM_JOB_NUM_NODES") or 1)

    @property
    def local_images(self) -> int:
        """Images per optimizer step on each rank, rounded up."""
        return -(-self.config.train.global_batch // self.ranks)

    @property
    def local_batch(self) -> int:
        """Images per micro-batch on each rank, rounded up."""
        return min(self.config.train.max_local_batch or self.local_images, self.local_images)


def number_in(environ: Mapping[str, str], *names: str) -> int | None:
    """Return the number in the first of these variables that holds one, or None."""
    return next((int(environ[n]) for n in names if environ.get(n, "").isdigit()), None)


def measured(limit_s: float, measure: Callable[[], Facts], path: object = None) -> Facts:
    """Return the facts that `measure` returns, or as `error` why there are none.

    It runs in a forked process, which may hang; an error begins with the `path` that is measured.
    """
    try:
        return within(limit_s, measure)
    except NoAnswer as error:
        where, reason = path, str(error)
    except HarnessError as error:
        return {"error": str(error)}
    except OSError as error:
        where, reason = path and (error.filename or path), error.strerror or str(error)
    return {"error": f"{where}: {reason}" if where else reason}


def worst(checks: Sequence[Check], least: Status = "not checked") -> Status:
    """Return the worst status among the checks, or `least` if none is worse."""
    return max([least, *(check.status for check in checks)], key=SEVERITY.__getitem__)


def span(values: Sequence[float], spec: str = ",.0f") -> str:
    """Format the range of some numbers, `low to high`, or one number if both look the same."""
    low, high = format(min(values), spec), format(max(values), spec)
    return low if low == high else f"{low} to {high}"
