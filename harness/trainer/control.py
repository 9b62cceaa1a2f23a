"""What every rank does between two steps: signal that it is alive, vote, and learn the outcome."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple, NoReturn

import torch
import torch.distributed as dist

from harness.errors import EXIT_FAILED, RunFailed
from harness.logging import rank_log
from harness.monitor.watchdog import Watchdog
from harness.run_folder import folder as run_folder
from harness.system.process import Signals

LAST_WORDS_S = 5.0
"""The disk that a rank hangs on may be the one that its failure is to be written to."""


class Outcome(NamedTuple):
    """The outcome of a vote: whether all ranks stop, save, or end the training."""

    stop: bool
    save: bool
    end: bool


class Vote:
    """A vote in every step: any rank may raise a flag, and all ranks learn of it at the same step.

    Each `cast` starts an all-reduce of three small numbers in host memory, in a group of its own,
    and returns the outcome of the previous one. It waits neither for the device nor for the
    gradients' collectives. A rank that has died shows within a step: gloo's connections break.
    """

    def __init__(self, timeout_s: float) -> None:
        self._group: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        self._flags = torch.zeros(3, dtype=torch.int32)
        self._under_way: dist.Work | None = None

    def cast(self, *, stop: bool, save: bool, end: bool = False) -> Outcome:
        """Vote; return which flags any rank had raised one call before."""
        agreed = self._outcome()
        self._flags = torch.tensor([stop, save, end], dtype=torch.int32)
        self._under_way = dist.all_reduce(self._flags, group=self._group, async_op=True)
        return agreed

    def close(self) -> None:
        """Wait for the last vote, so that no rank leaves while another still needs the answer."""
        self._outcome()

    def _outcome(self) -> Outcome:
        if self._under_way is not None:
            self._under_way.wait()
            self._under_way = None
        return Outcome(*map(bool, self._flags.tolist()))


@dataclass
class StepControl:
    """Called once per step and per validation batch, on all ranks; by default, nothing happens.

    Where one rank says that a checkpoint is due, or that the time limit ends the training, all do.
    """

    vote: Vote
    signals: Signals = field(default_factory=Signals)
    watchdog: Watchdog = field(default_factory=Watchdog)
    save_due: Callable[[], bool] = lambda: False
    time_is_up: Callable[[], bool] = lambda: False

    def poll(self) -> Outcome:
        """Vote, and return what all ranks are to do now, by the votes of the step before."""
        self.watchdog.ping()
        return self.vote.cast(
            stop=self.signals.received is not None, save=self.save_due(), end=self.time_is_up()
        )


def end_hanging(path: Path, rank: int, silent_s: float) -> NoReturn:
    """End this process from another thread, since its main thread hangs; `path` is the run's."""
    error = RunFailed(
        f"rank {rank} hangs: no step for {silent_s:.0f} s, more than engine.timeout_s "
        f"(engine.warm_up_timeout_s while starting); where it stands is in {path}/stacks"
    )
    rank_log.tell_job(f"error: {error}")
    record = Thread(target=run_folder.record_failure, args=(path, rank, error), daemon=True)
    record.start()
    record.join(LAST_WORDS_S)
    os._exit(EXIT_FAILED)
