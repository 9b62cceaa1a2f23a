"""Whether a GPU's clocks were held down while a run trained: looked for by a thread."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

import torch

from harness.distributed import World
from harness.monitor.gpus import HARMLESS, SLOWED, Nvml

EVERY_S = 10.0
LEAST_SHARE = 0.1
"""Of the looks at a GPU: a few of many may meet the heat of the run before."""
MOST_NAMED = 8
"""Ranks; more tell no more."""


class Throttle:
    """Looks every few seconds at this rank's GPU, in microseconds; nothing waits for it.

    Attributes:
        slowed: why clocks were held down in more than a tenth of the looks; known at the end.
    """

    def __init__(self, device: torch.device, every_s: float = EVERY_S) -> None:
        self._gpu = Nvml(device)
        self.slowed: list[str] = []
        self._every_s = every_s
        self._seen: Counter[str] = Counter()
        self._looks = 0
        self._over = threading.Event()
        # A daemon: a call may hang with its driver, and the run must end all the same.
        threading.Thread(target=self._watch, name="throttle", daemon=True).start()

    def end(self, world: World) -> None:
        """Stop looking; gather what all ranks have seen: a collective."""
        self._over.set()
        own = [reason for reason in SLOWED if self._seen[reason] > LEAST_SHARE * self._looks]
        self.slowed = in_words(world.gather(own))

    def _watch(self) -> None:
        while not self._over.wait(self._every_s):
            reasons = self._gpu.slowed()
            if reasons is not None:
                self._looks += 1
                self._seen.update(set(reasons) - HARMLESS)


def in_words(reasons: Sequence[Sequence[str]]) -> list[str]:
    """Why clocks were held down, and where several ranks train, whose.

    Args:
        reasons: of each rank's GPU, in their order.
    """
    lines = []
    for reason, words in SLOWED.items():
        ranks = [str(rank) for rank, own in enumerate(reasons) if reason in own]
        if not ranks:
            continue
        more = f" and {len(ranks) - MOST_NAMED} more" if len(ranks) > MOST_NAMED else ""
        whose = f": rank {', '.join(ranks[:MOST_NAMED])}{more}" if len(reasons) > 1 else ""
        lines.append(f"{words}{whose}")
    return lines
