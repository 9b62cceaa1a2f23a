"""Find stragglers: gather each rank's own compute and data-wait times, and name the slow ranks.

In a synchronous step all ranks wait for the slowest, so step times alone do not show which it is.
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
"""A rank is slow if its compute time exceeds this multiple of the median rank's."""
WAITS_MORE_PCT = 10.0
"""A rank is slow too if its share of time waiting for data is this many points above the median."""
LEAST_PERIODS, WINDOW_PERIODS = 3, 20
"""A rank is judged by its last periods only, so that one that turns slow late is found soon."""
MOST_NAMED = 8
"""At most this many slow ranks are reported: if there are more, they are the normal ones."""


@dataclass(frozen=True)
class Slow:
    """A slow rank and a description of why it is slow."""

    rank: int
    why: str


class Stragglers:
    """Finds ranks that were slower than the median rank in more than half of the last periods."""

    def __init__(self) -> None:
        self._computing: deque[set[int]] = deque(maxlen=WINDOW_PERIODS)
        self._waiting: deque[set[int]] = deque(maxlen=WINDOW_PERIODS)
        self._named: set[int] = set()

    def period(self, compute_ms: Sequence[float], wait_pct: Sequence[float]) -> list[Slow]:
        """Add a log period; return the ranks that are now slow, each only once.

        Args:
            compute_ms: each rank's time per step, up to where it first waits for other ranks.
            wait_pct: share of time in which each rank waited for data.
        """
        # The low median: of two ranks, the slow one is compared with the fast one.
        compute, wait = median_low(compute_ms), median_low(wait_pct)
        self._computing.append({r for r, ms in enumerate(compute_ms) if ms > SLOWER * compute})
        self._waiting.append({r for r, pct in enumerate(wait_pct) if pct > wait + WAITS_MORE_PCT})
        slow = []
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
            slow.append(Slow(rank, why))
        return slow

    @staticmethod
    def _often(rank: int, slow: deque[set[int]]) -> str | None:
        """Return in how many of the last periods a rank was slow, as text; None if not in most."""
        times = sum(rank in ranks for ranks in slow)
        is_often = len(slow) >= LEAST_PERIODS and times > len(slow) / 2
        return f"{times} of the last {len(slow)}" if is_often else None


class StragglerDetector:
    """Gathers all ranks' times and energy at log points, and reports stragglers.

    Attributes:
        stragglers: messages about slow ranks of this attempt; the same on all ranks.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._energy = Energy(world.device)
        self._stragglers = Stragglers()
        self.stragglers: list[str] = []

    def begin(self) -> None:
        """Start counting energy: training begins, or continues after something else."""
        self._energy.mark()

    def read(self, times: PeriodTimes, images: int, clock: Clock) -> dict[str, Any]:
        """Return fields for a row; a collective call at a log point.

        Args:
            images: number of images of all ranks in the period.
            clock: the energy used is added to its `energy_j`.
        """
        steps = max(1, len(times.steps_ms))
        mine = [
            times.compute_ms / steps,
            100 * times.data_wait_s / times.train_s,
            # If ranks share a GPU, each would count all of its energy.
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
            # In a short period the counter may not have changed: the power is unknown.
            "power_w": used_j / times.train_s if used_j > 0 else None,
            "images_per_joule": images / used_j if used_j > 0 else None,
        }

    def _name(self, slow: Sequence[Slow]) -> None:
        """Gather and print a message from each slow rank with its host and GPU; collective."""
        if not slow or self._world.size == 1:
            return
        own = [
            f"rank {straggler.rank} ({who(self._world.device)}) {straggler.why}"
            for straggler in slow
            if straggler.rank == self._world.rank
        ]
        lines = [line for messages in self._world.gather(own) for line in messages]
        self.stragglers += lines
        if self._world.is_main:
            for line in lines:
                out.print(f"slow: {line}")


def who(device: torch.device) -> str:
    """Return this process's host and device, with a GPU's serial number and clocks."""
    host = socket.gethostname()
    if device.type != "cuda":
        return f"{host}, CPU"
    names = (host, torch.cuda.get_device_name(device), gpu_uuid(device))
    return ", ".join([*names, *Nvml(device).description()])
