"""The records of `harness doctor`: a check's result, a rank's facts, the run that is planned."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from harness.config import Config
from harness.config.rules import compiles
from harness.distributed import World
from harness.errors import HarnessError
from harness.system.deadline import NoAnswer, within
from harness.system.process import core_share

Status = Literal["not checked", "green", "yellow", "red"]
SEVERITY: dict[Status, int] = {"not checked": 0, "green": 1, "yellow": 2, "red": 3}

Facts = dict[str, Any]
"""What one rank measured: `name_unit` -> a plain value that JSON can hold."""


class Check(BaseModel):
    """The result of one check: a line of the table.

    Attributes:
        value: what was measured, as text; for `not checked`, the reason.
        do: what the user should do if the status is yellow or red.
        host: the host that was checked; empty if the check concerns all hosts together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    status: Status
    value: str
    do: str = ""
    host: str = ""


@dataclass(frozen=True)
class PlannedRun:
    """The run that this machine is checked for.

    Attributes:
        world: this process among the ranks that do the checks.
        gpus: GPUs expected on this node; 0 for none.
        environ: the launcher's environment variables.
    """

    config: Config
    world: World
    gpus: int
    environ: Mapping[str, str]

    @property
    def wants_gpu(self) -> bool:
        """Whether the run uses a GPU if there is one."""
        return self.config.engine.device != "cpu"

    @property
    def compiles(self) -> bool:
        """Whether the run is compiled on this machine."""
        return compiles(self.config.engine, on_gpu=self.world.on_gpu)

    @property
    def threads(self) -> int:
        """CPU threads that each rank computes with."""
        return self.config.engine.threads or self.world.cores()

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
        nodes = self.environ.get("SLURM_JOB_NUM_NODES", "")
        return self.local_ranks * (int(nodes) if nodes.isdigit() else 1)

    @property
    def local_images(self) -> int:
        """Images per optimizer step on each rank, rounded up."""
        return -(-self.config.train.global_batch // self.ranks)


def green(name: str, value: str) -> Check:
    """Return a check that passed."""
    return Check(name=name, status="green", value=value)


def yellow(name: str, value: str, do: str) -> Check:
    """Return a check that warns: the run works, but slower or with less than possible."""
    return Check(name=name, status="yellow", value=value, do=do)


def red(name: str, value: str, do: str) -> Check:
    """Return a check that failed: the run would fail or give wrong results."""
    return Check(name=name, status="red", value=value, do=do)


def not_checked(name: str, reason: str) -> Check:
    """Return a check that was skipped, with the reason."""
    return Check(name=name, status="not checked", value=reason)


def measured(limit_s: float, measure: Callable[[], Facts], path: object = None) -> Facts:
    """Return the facts that `measure` returns, or as `error` why there are none.

    Args:
        limit_s: time limit; the function runs in a forked process, which may hang.
        path: what is measured, for the error.
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


def worst(checks: Sequence[Check]) -> Status:
    """Return the worst status among the checks; `not checked` if there are none."""
    return max((check.status for check in checks), key=SEVERITY.__getitem__, default="not checked")


def span(values: Sequence[float], spec: str = ",.0f") -> str:
    """Format the range of some numbers, `low to high`, or one number if both look the same."""
    low, high = format(min(values), spec), format(max(values), spec)
    return low if low == high else f"{low} to {high}"
