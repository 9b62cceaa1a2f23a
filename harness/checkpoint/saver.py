"""Saver: writes checkpoints in a thread; training is held up only for the copy off the device."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from harness import config as cfg
from harness.checkpoint import store
from harness.checkpoint.state import Staging, State


class Saver:
    """Rank 0's: one checkpoint at a time, from host memory that is used again and again.

    Args:
        before: called in the thread before a checkpoint is published: makes durable what it counts
            on; may raise OSError.
        after: called in the thread with the state that was published.
        say: takes a line for the user.
    """

    def __init__(
        self,
        folder: Path,
        config: cfg.Checkpoint,
        *,
        before: Callable[[], object],
        after: Callable[[State], object],
        say: Callable[[str], None],
    ) -> None:
        self.staging = Staging()
        self.last: Path | None = None  # the newest that this attempt published, or resumed from
        self.failed: OSError | None = None  # why the last one could not be written
        self._folder, self._config = folder, config
        self._before, self._after, self._say = before, after, say
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._under_way: Future[None] | None = None
        self._last_at = time.monotonic()

    def due(self) -> bool:
        """Whether enough time has passed; asking begins a new period."""
        now, minutes = time.monotonic(), self._config.every_minutes
        if not minutes or now - self._last_at < 60 * minutes:
            return False
        self._last_at = now
        return True

    @property
    def busy(self) -> bool:
        """Whether the former checkpoint is still being written, out of `staging`."""
        return self._under_way is not None and not self._under_way.done()

    def save(self, state: State, about: dict[str, Any]) -> None:
        """Write a state that lies in `staging`; returns at once."""
        assert not self.busy, "the memory of the former checkpoint is still in use"
        self._last_at = time.monotonic()
        self._under_way = self._thread.submit(self._write, state, about)

    def wait(self, timeout_s: float | None = None) -> None:
        """Return once nothing is being written.

        Raises:
            TimeoutError: it takes longer.
        """
        if self._under_way is not None:
            self._under_way.result(timeout_s)

    def last_before(self, step: int) -> Path | None:
        """The newest checkpoint of an earlier step; what is not earlier is put aside."""
        self.wait()
        self.last = store.last_before(self._folder, step)
        return self.last

    def _write(self, state: State, about: dict[str, Any]) -> None:
        self.staging.wait()
        if not _is_finite(state):
            self._say(f"step {about['step']}: not saved, as losses or weights are not finite")
            return
        try:
            self._before()
            self.last = store.publish(self._folder, state, about)
            store.prune(self._folder, self._config.keep, self._config.keep_every_epochs)
        except OSError as error:
            self.failed = error
            self._say(
                f"warning: step {about['step']}: the checkpoint could not be written "
                f"({error.strerror}); training goes on, the last good one is {self.last or 'none'}"
            )
            return
        self.failed = None
        self._after(state)


def _is_finite(state: State) -> bool:
    """Whether all losses of the open log period, of all ranks, and all weights are finite."""
    tensors = [state["losses"], *state["model"].values()]
    # numpy, since torch would start a second team of threads beside that of the training.
    return all(bool(np.isfinite(t.numpy()).all()) for t in tensors if t.is_floating_point())
