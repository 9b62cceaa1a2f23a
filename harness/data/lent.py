"""Lent: buffers that copies on a stream may still read, held until the GPU has come by."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch

MOST_LENT = 8
"""Batches that the host may be ahead of the GPU: DALI's memory for them is held as long."""


class Lent:
    """DALI's outputs that copies on torch's stream may still read: DALI does not see that stream.

    Held until the GPU has come by, since DALI uses their memory again once nobody holds them.
    """

    def __init__(self) -> None:
        self._held: deque[tuple[torch.cuda.Event, Any]] = deque()

    def add(self, outputs: Any, stream: torch.cuda.Stream) -> None:
        """Hold these until what is in the stream by now is done."""
        event = torch.cuda.Event()
        event.record(stream)
        self._held.append((event, outputs))
        while self._held[0][0].query() and len(self._held) > 1:
            self._held.popleft()
        self.wait(leave=MOST_LENT)

    def wait(self, *, leave: int) -> None:
        """Wait for the oldest, until at most so many are held."""
        while len(self._held) > leave:
            self._held.popleft()[0].synchronize()
