"""Detect reduced GPU clocks during training, by a thread that polls NVML."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

import torch

from harness.distributed import World
from harness.monitor.gpus import HARMLESS, SLOWED, Nvml

EVERY_S = 10.0
LEAST_SHARE = 0.1
"""Share of samples above which a reason is reported; a few may be due to a previous run's heat."""
MOST_NAMED = 8
"""Ranks listed in a message."""


class Throttle:
    """Polls this rank's GPU every few seconds in a thread; a poll takes microseconds.

    Attributes:
        slowed: after `end`, why clocks were reduced in more than a tenth of the samples.
    """

    def __init__(self, device: torch.device, every_s: float = EVERY_S) -> None:
        self._gpu = Nvml(device)
        self.slowed: list[str] = []
        self._every_s = every_s
        self._counts: Counter[str] = Counter()
        self._samples = 0
        self._stop = threading.Event()
        # A daemon thread, since a call may hang with the driver, and the run must still end.
        threading.Thread(target=self._watch, name="throttle", daemon=True).start()

    def end(self, world: World) -> None:
        """Stop polling and gather all ranks' reasons; a collective call."""
        self._stop.set()
        own = [reason for reason in SLOWED if self._counts[reason] > LEAST_SHARE * self._samples]
        self.slowed = in_words(world.gather(own))

    def _watch(self) -> None:
        while not self._stop.wait(self._every_s):
            reasons = self._gpu.slowed()
            if reasons is not None:
                self._samples += 1
                self._counts.update(set(reasons) - HARMLESS)


def in_words(reasons: Sequence[Sequence[str]]) -> list[str]:
    """Return descriptions of the reasons for reduced clocks, with the ranks if there are several.

    Args:
        reasons: each rank's keys of SLOWED.
    """
    lines = []
    for reason, description in SLOWED.items():
        ranks = [str(rank) for rank, own in enumerate(reasons) if reason in own]
        if not ranks:
            continue
        more = f" and {len(ranks) - MOST_NAMED} more" if len(ranks) > MOST_NAMED else ""
        listed = f": rank {', '.join(ranks[:MOST_NAMED])}{more}" if len(reasons) > 1 else ""
        lines.append(f"{description}{listed}")
    return lines
