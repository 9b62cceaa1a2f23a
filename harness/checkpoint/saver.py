"""Saver: writes checkpoints in a thread; training waits only for the copy from the device."""

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
    """Writes one checkpoint at a time on rank 0, from host memory that is reused.

    Args:
        before: called in the thread before a checkpoint is published, to make durable what the
            checkpoint refers to; may raise OSError.
        after: called in the thread with the published state.
        say: prints a line for the user.
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
        self._pending: Future[None] | None = None
        self._last_at = time.monotonic()

    def due(self) -> bool:
        """Return whether `every_minutes` have passed; if so, a new period begins."""
        now, minutes = time.monotonic(), self._config.every_minutes
        if not minutes or now - self._last_at < 60 * minutes:
            return False
        self._last_at = now
        return True

    @property
    def busy(self) -> bool:
        """Whether the previous checkpoint is still being written from `staging`."""
        return self._pending is not None and not self._pending.done()

    def save(self, state: State, about: dict[str, Any]) -> None:
        """Start to write a state that lies in `staging`; return at once."""
        assert not self.busy, "the memory of the previous checkpoint is still in use"
        self._last_at = time.monotonic()
        self._pending = self._thread.submit(self._write, state, about)

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until nothing is being written.

        Raises:
            TimeoutError: it takes longer than `timeout_s` seconds.
        """
        if self._pending is not None:
            self._pending.result(timeout_s)

    def last_before(self, step: int) -> Path | None:
        """Return the newest checkpoint before `step`; move later ones aside."""
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
    """Return whether the weights, and all ranks' losses since the last row, are finite."""
    tensors = [state["losses"], *state["model"].values()]
    # numpy, since torch would start a second pool of threads that competes with the training.
    return all(bool(np.isfinite(t.numpy()).all()) for t in tensors if t.is_floating_point())
