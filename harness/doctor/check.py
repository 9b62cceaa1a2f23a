"""Check: one line of the doctor's table, and what it is judged from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from harness.config import Config
from harness.config.rules import compiles
from harness.distributed import World
from harness.system import cores

Status = Literal["not checked", "green", "yellow", "red"]
SEVERITY: dict[Status, int] = {"not checked": 0, "green": 1, "yellow": 2, "red": 3}

Facts = dict[str, Any]
"""What was found out on one rank: `name_unit` -> a plain value that JSON can hold."""


class Check(BaseModel):
    """One thing that was looked at.

    Attributes:
        value: what was found, in words; for `not checked`, why.
        do: what to do, where it is yellow or red.
        host: where it was found; empty where it concerns all hosts together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    status: Status
    value: str
    do: str = ""
    host: str = ""


@dataclass(frozen=True)
class Asked:
    """What the run to come needs, as far as the doctor is concerned.

    Attributes:
        gpus: GPUs expected on this node; 0 for none.
        environ: the launcher's variables.
    """

    config: Config
    world: World
    gpus: int
    environ: Mapping[str, str]

    @property
    def wants_gpu(self) -> bool:
        """Whether the run would use a GPU if there is one."""
        return self.config.engine.device != "cpu"

    @property
    def compiles(self) -> bool:
        """Whether the run would be compiled, here."""
        return compiles(self.config.engine, on_gpu=self.world.on_gpu)

    @property
    def threads(self) -> int:
        """CPU threads for computing, of each rank."""
        return self.config.engine.threads or self.world.cores()

    @property
    def cores(self) -> float:
        """CPU cores of each rank: this process may be alone, before them."""
        ranks = self.world.local_size
        return cores.share(ranks) * ranks / self.local_ranks

    @property
    def loader_threads(self) -> int:
        """Threads or workers that read and decode, of each rank."""
        return self.config.data.threads or max(1, int(self.cores))

    @property
    def local_ranks(self) -> int:
        """Ranks of this node in the run to come: this process may be alone, before it."""
        return max(self.world.local_size, self.gpus if self.world.on_gpu else 0)

    @property
    def ranks(self) -> int:
        """Ranks of the run to come, on all nodes."""
        if "RANK" in self.environ:
            return self.world.size
        nodes = self.environ.get("SLURM_JOB_NUM_NODES", "")
        return self.local_ranks * (int(nodes) if nodes.isdigit() else 1)

    @property
    def local_images(self) -> int:
        """Images of each rank per optimiser step, rounded up."""
        return -(-self.config.train.global_batch // self.ranks)


def green(name: str, value: str) -> Check:
    """Good as it is."""
    return Check(name=name, status="green", value=value)


def yellow(name: str, value: str, do: str) -> Check:
    """It will run, but slower or with less than it could have."""
    return Check(name=name, status="yellow", value=value, do=do)


def red(name: str, value: str, do: str) -> Check:
    """It will not run, or not rightly."""
    return Check(name=name, status="red", value=value, do=do)


def not_checked(name: str, why: str) -> Check:
    """Nothing is known of it."""
    return Check(name=name, status="not checked", value=why)


def worst(checks: Sequence[Check]) -> Status:
    """The worst status among checks."""
    return max((check.status for check in checks), key=SEVERITY.__getitem__, default="not checked")


def span(values: Sequence[float], form: str = ",.0f") -> str:
    """Numbers in words: one, or from the least to the most."""
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"
