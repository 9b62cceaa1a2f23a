"""Find stragglers: gather each rank's own compute and data-wait times, and name the slow ranks.

In a synchronous step all ranks wait for the slowest, so step times alone do not show which it is.
"""

import math
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from statistics import median_low
from typing import Any

import torch

from harness.distributed import World
from harness.monitor.clock import PeriodTimes
from harness.system.console import out

SLOWER = 1.10
"""A rank is slow if its compute time exceeds this multiple of the median rank's."""
WAITS_MORE_PCT = 10.0
"""A rank is slow too if its share of time waiting for data is this many points above the median."""
LEAST_PERIODS, WINDOW_PERIODS = 3, 20
"""A rank is judged by its last periods only, so that one that turns slow late is found soon."""
MOST_NAMED = 8
"""At most this many slow ranks are reported: if there are more, they are the normal ones."""


class Stragglers:
    """Finds ranks that were slower than the median rank in more than half of the last periods."""

    def __init__(self) -> None:
        self._computing: deque[set[int]] = deque(maxlen=WINDOW_PERIODS)
        self._waiting: deque[set[int]] = deque(maxlen=WINDOW_PERIODS)
        self._named: set[int] = set()

    def period(self, compute_ms: Sequence[float], wait_pct: Sequence[float]) -> dict[int, str]:
        """Add a log period; return the ranks that are now slow, each only once, and why they are.

        Args:
            compute_ms: each rank's time per step, up to where it first waits for other ranks.
            wait_pct: share of time in which each rank waited for data.
        """
        # The low median: of two ranks, the slow one is compared with the fast one.
        compute, wait = median_low(compute_ms), median_low(wait_pct)
        self._computing.append({r for r, ms in enumerate(compute_ms) if ms > SLOWER * compute})
        self._waiting.append({r for r, pct in enumerate(wait_pct) if pct > wait + WAITS_MORE_PCT})
        slow = {}
        for rank in range(len(compute_ms)):
            if rank in self._named or len(self._named) == MOST_NAMED:
                continue
            if times := _often(rank, self._computing):
                slow[rank] = (
                    f"computes a step in {compute_ms[rank]:.1f} ms, the median rank in "
                    f"{compute:.1f}, slow in {times} log periods"
                )
            elif times := _often(rank, self._waiting):
                slow[rank] = (
                    f"waits for data {wait_pct[rank]:.0f} % of the time, the median rank "
                    f"{wait:.0f} %, in {times} log periods"
                )
            self._named |= slow.keys()
        return slow


def _often(rank: int, slow: deque[set[int]]) -> str | None:
    times = sum(rank in ranks for ranks in slow)
    is_often = len(slow) >= LEAST_PERIODS and times > len(slow) / 2
    return f"{times} of the last {len(slow)}" if is_often else None


class StragglerDetector:
    """Gathers all ranks' times and energy at log points, and reports stragglers."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._used_j = energy_counter(world)
        self._stragglers = Stragglers()
        self.stragglers: list[str] = []  # messages of this attempt, the same on all ranks

    def begin(self) -> None:
        """Start counting energy: training begins, or continues after something else."""
        self._used_j()

    def read(self, times: PeriodTimes, images: int) -> dict[str, Any]:
        """Return fields for a row of a period with so many images; a collective at a log point."""
        steps = max(1, len(times.steps_ms))
        mine = [times.compute_ms / steps, 100 * times.data_wait_s / times.train_s, self._used_j()]
        vector = torch.tensor(mine, dtype=torch.float64, device=self._world.device)
        compute_ms, wait_pct, joules = self._world.gather_tensor(vector).T.tolist()
        self._report(self._stragglers.period(compute_ms, wait_pct))
        several, slowest_ms = self._world.size > 1, max(compute_ms)
        used_j = sum(joules)  # in a short period the counter may not have changed
        return {
            "compute_ms_median": median_low(compute_ms),
            "compute_ms_slowest": slowest_ms if several else None,
            "slowest_rank": compute_ms.index(slowest_ms) if several else None,
            "data_wait_most_pct": max(wait_pct) if several else None,
            "power_w": used_j / times.train_s if used_j > 0 else None,
            "images_per_joule": images / used_j if used_j > 0 else None,
        }

    def _report(self, slow: Mapping[int, str]) -> None:
        """Gather and print a message from each slow rank with its host and GPU; collective."""
        if not slow or self._world.size == 1:
            return
        rank = self._world.rank
        own = f"rank {rank} ({who(self._world.device)}) {slow[rank]}" if rank in slow else None
        lines = [line for line in self._world.gather(own) if line]
        self.stragglers += lines
        if self._world.is_main:
            for line in lines:
                out.print(f"slow: {line}")


def energy_counter(world: World) -> Callable[[], float]:
    """Return a function for the joules of this rank's GPU since its last call; nan: unknown."""
    if not world.on_gpu or world.shares_gpu:  # ranks that share a GPU would all count its energy
        return lambda: math.nan
    from harness.monitor.gpus import Nvml

    return Nvml(world.device).used_j


def who(device: torch.device) -> str:
    """Return this process's host and device, with a GPU's serial number and clocks."""
    host = socket.gethostname()
    if device.type != "cuda":
        return f"{host}, CPU"
    from harness.monitor.gpus import Nvml, gpu_uuid

    names = (host, torch.cuda.get_device_name(device), gpu_uuid(device))
    return ", ".join([*names, *Nvml(device).description()])
