"""Peers: what each rank took in a log period, told to all; who is slower than the others by itself.

In a synchronous step all wait for the slowest, so that step times alone never say which it is.
"""

from __future__ import annotations

import math
import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Any

import torch

from harness.distributed import World
from harness.monitor.clock import Clock, PeriodTimes
from harness.monitor.energy import Energy
from harness.monitor.environment import gpu_uuid
from harness.monitor.gpus import Nvml
from harness.system.console import out

SLOWER = 1.10
"""So much slower than the median rank is slow."""
WAITS_MORE_PCT = 10.0
"""So many points more of the time waiting for data than the median rank is slow too."""
LEAST_PERIODS, WINDOW_PERIODS = 3, 20
"""A rank is judged by its last periods: one that turns slow after days is found within minutes."""
MOST_NAMED = 8
"""More than a few slow ranks are the normal ones."""


@dataclass(frozen=True)
class Slow:
    """A rank that holds up the others, and by what."""

    rank: int
    why: str


class Stragglers:
    """Ranks that were slower than the median rank in more than half of the last periods."""

    def __init__(self) -> None:
        self._computing: deque[set[int]] = deque(maxlen=WINDOW_PERIODS)
        self._waiting: deque[set[int]] = deque(maxlen=WINDOW_PERIODS)
        self._named: set[int] = set()

    def period(self, compute_ms: Sequence[float], wait_pct: Sequence[float]) -> list[Slow]:
        """Take up a log period; ranks that are found slow, each once.

        Args:
            compute_ms: of a step of each rank, up to where it first waits for others.
            wait_pct: share of time in which each rank waited for data.
        """
        # Of two ranks, the fast one is what the slow one is held against.
        compute, wait = median_low(compute_ms), median_low(wait_pct)
        self._computing.append({r for r, ms in enumerate(compute_ms) if ms > SLOWER * compute})
        self._waiting.append({r for r, pct in enumerate(wait_pct) if pct > wait + WAITS_MORE_PCT})
        found = []
        for rank in range(len(compute_ms)):
            if rank in self._named or len(self._named) == MOST_NAMED:
                continue
            if times := self._often(rank, self._computing):
                why = (
                    f"computes a step in {compute_ms[rank]:.1f} ms, the median rank in "
                    f"{compute:.1f}, slow in {times} log periods"
                )
            elif times := self._often(rank, self._waiting):
                why = (
                    f"waits for data {wait_pct[rank]:.0f} % of the time, the median rank "
                    f"{wait:.0f} %, in {times} log periods"
                )
            else:
                continue
            self._named.add(rank)
            found.append(Slow(rank, why))
        return found

    @staticmethod
    def _often(rank: int, slow: deque[set[int]]) -> str | None:
        """In how many of the last periods a rank was among the slow ones, if in most."""
        times = sum(rank in each for each in slow)
        is_often = len(slow) >= LEAST_PERIODS and times > len(slow) / 2
        return f"{times} of the last {len(slow)}" if is_often else None


class Peers:
    """All ranks' times and energy, gathered at log points.

    Attributes:
        stragglers: lines that name slow ranks of this attempt; on all ranks.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._energy = Energy(world.device)
        self._stragglers = Stragglers()
        self.stragglers: list[str] = []

    def begin(self) -> None:
        """Training begins, or goes on after something else."""
        self._energy.mark()

    def read(self, times: PeriodTimes, images: int, clock: Clock) -> dict[str, Any]:
        """Fields of a row; a collective, at a log point.

        Args:
            images: of all ranks, in the period.
            clock: its energy grows.
        """
        steps = max(1, len(times.steps_ms))
        mine = [
            times.compute_ms / steps,
            100 * times.data_wait_s / times.train_s,
            # Of a shared GPU each rank would count all of it.
            math.nan if self._world.shares_gpu else self._energy.used_j(),
        ]
        vector = torch.tensor(mine, dtype=torch.float64, device=self._world.device)
        compute_ms, wait_pct, joules = self._world.gather_tensor(vector).T.tolist()
        self._name(self._stragglers.period(compute_ms, wait_pct))
        several = self._world.size > 1
        slowest = max(range(len(compute_ms)), key=compute_ms.__getitem__)
        used_j = sum(joules)
        if math.isfinite(used_j):
            clock.energy_j = (clock.energy_j or 0.0) + used_j
        return {
            "compute_ms_median": median_low(compute_ms),
            "compute_ms_slowest": compute_ms[slowest] if several else None,
            "slowest_rank": slowest if several else None,
            "data_wait_most_pct": max(wait_pct) if several else None,
            # Short periods can end before the counter moves: nothing is known of them.
            "power_w": used_j / times.train_s if used_j > 0 else None,
            "images_per_joule": images / used_j if used_j > 0 else None,
        }

    def _name(self, slow: Sequence[Slow]) -> None:
        """Each slow rank says who it is and how its GPU does; the others wait for that, once."""
        if not slow or self._world.size == 1:
            return
        told = [
            f"rank {each.rank} ({who(self._world.device)}) {each.why}"
            if each.rank == self._world.rank else None
            for each in slow
        ]  # fmt: skip
        lines = [line for each in self._world.gather(told) for line in each if line is not None]
        self.stragglers += lines
        if self._world.is_main:
            for line in lines:
                out.print(f"slow: {line}")


def who(device: torch.device) -> str:
    """This process's host and device; of a GPU also serial number, clocks and what slows it."""
    host = socket.gethostname()
    if device.type != "cuda":
        return f"{host}, CPU"
    names = (host, torch.cuda.get_device_name(device), gpu_uuid(device))
    return ", ".join([*names, *Nvml(device).description()])
