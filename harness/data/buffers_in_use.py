"""Buffers of DALI that copies on torch's stream may still read, held until these are done."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch

MOST_IN_USE = 8
"""Batches that the host may run ahead of the GPU; their memory cannot be reused meanwhile."""


class BuffersInUse:
    """DALI's outputs that copies on torch's stream may still read.

    DALI does not know that stream and reuses the memory once no reference is held, so references
    are held until the copies have run.
    """

    def __init__(self) -> None:
        self._held: deque[tuple[torch.cuda.Event, Any]] = deque()

    def add(self, outputs: Any, stream: torch.cuda.Stream) -> None:
        """Hold these outputs until all work now in the stream is done."""
        event = torch.cuda.Event()
        event.record(stream)
        self._held.append((event, outputs))
        while self._held[0][0].query() and len(self._held) > 1:
            self._held.popleft()
        self.wait(leave=MOST_IN_USE)

    def wait(self, *, leave: int) -> None:
        """Wait for the oldest outputs until at most `leave` are held."""
        while len(self._held) > leave:
            self._held.popleft()[0].synchronize()
