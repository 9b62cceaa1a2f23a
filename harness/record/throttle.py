"""Whether the GPU's clocks were held down while a run trained: looked for by a thread."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import suppress
from subprocess import TimeoutExpired

from harness.record import smi

EVERY_S = 60.0
ANSWER_S = 20.0
HARMLESS = frozenset({"sw_power_cap"})
"""A GPU that is well used works at its power cap: the cap is a setting."""
LEAST_SHARE = 0.1
"""Of the looks at a GPU: a few of many may meet the heat of the run before."""


class Throttle:
    """Asks nvidia-smi once a minute for the clocks of one GPU; nothing waits for it.

    Args:
        uuid: of the GPU, as nvidia-smi writes it.
    """

    def __init__(self, uuid: str, every_s: float = EVERY_S) -> None:
        self._uuid = uuid
        self._every_s = every_s
        self._seen: Counter[str] = Counter()
        self._looks = 0
        self._over = threading.Event()
        # A daemon: nvidia-smi may hang with its driver, and the run must end all the same.
        threading.Thread(target=self._watch, name="throttle", daemon=True).start()

    def end(self) -> list[str]:
        """Stop looking; why clocks were held down in more than a tenth of the looks, in words."""
        self._over.set()
        return [
            words
            for reason, words in smi.SLOWED.items()
            if self._seen[reason] > LEAST_SHARE * self._looks
        ]

    def _watch(self) -> None:
        while not self._over.wait(self._every_s):
            with suppress(OSError, TimeoutExpired, smi.SmiFails):
                for gpu in smi.ask_plainly(ANSWER_S).gpus:
                    if gpu.uuid == self._uuid:
                        self._looks += 1
                        self._seen.update(set(gpu.slowed) - HARMLESS)
