"""Clock: charges the time of a run to accounts (training, evaluation, ...) and times each step."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch.profiler import record_function

from harness.system.process import process_age_s

Account = Literal["start_up", "compile", "train", "evaluate", "checkpoint", "lost"]
Phase = Literal["wait for data", "forward", "loss", "backward", "counts", "optimizer"]
"""The parts of a step."""
PHASE_PREFIX = "phase: "
"""Of the phases' names in a profile."""

_Moment = torch.cuda.Event | float
_WAITING: set[Phase] = {"wait for data"}
_COMPUTING: set[Phase] = {"forward", "loss"}  # the backward pass waits for the other ranks


@dataclass(frozen=True)
class PeriodTimes:
    """The times of one log period on this rank."""

    steps_ms: list[float]
    compute_ms: float  # of all steps together, without waiting for other ranks
    train_s: float
    data_wait_s: float


class _LogPoint(NamedTuple):
    """The clock's readings at the last log point."""

    steps: int
    train_s: float
    data_wait_s: float


class Clock:
    """Charges every moment since the process began to exactly one account, and times the steps.

    Step times come from device events on a GPU and from the host's clock on a CPU; the host does
    not wait for the device between log points.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._account: Account = "start_up"
        self._spent_s: dict[Account, float] = {"start_up": 0.0}
        self._started = time.perf_counter() - process_age_s()
        self._since = self._started
        self._marks: list[_Moment | None] = []
        self._spans: list[tuple[Phase, _Moment, _Moment]] = []
        self._step_ms: list[float] = []
        self._log_point = _LogPoint(0, 0.0, 0.0)
        self._before_s = 0.0
        self._compute_ms = 0.0
        self.data_wait_s = 0.0  # up to the last log point

    @contextmanager
    def account(self, name: Account) -> Iterator[None]:
        """Charge the time of this block to an account; return to the former account after it."""
        before = self._account
        self._charge(name)
        yield
        self._charge(before)

    def _charge(self, then: Account) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # unfinished work belongs to the old account
        now = time.perf_counter()
        self._spent_s[self._account] = self._spent_s.get(self._account, 0.0) + now - self._since
        self._account, self._since = then, now

    @property
    def accounts_s(self) -> dict[str, float]:
        """Seconds of each account so far, over all attempts; they add up to `total_s`."""
        now = time.perf_counter()
        spent: dict[str, float] = {str(name): s for name, s in self._spent_s.items()}
        spent[self._account] = spent.get(self._account, 0.0) + now - self._since
        return spent

    @property
    def train_s(self) -> float:
        """Seconds of the account `train` so far."""
        return self.accounts_s.get("train", 0.0)

    @property
    def wall_s(self) -> float:
        """Seconds since the process began."""
        return time.perf_counter() - self._started

    @property
    def total_s(self) -> float:
        """Seconds of all attempts, without the time between them."""
        return self._before_s + self.wall_s

    def state_dict(self) -> dict[str, Any]:
        """Return the clock's state for a checkpoint; the device must be idle."""
        self._read_marks()
        return {
            "accounts_s": self.accounts_s,
            "data_wait_s": self.data_wait_s,
            "compute_ms": self._compute_ms,
            "log_point": list(self._log_point),
            "step_ms": torch.tensor(self._step_ms, dtype=torch.float32),
        }

    def load_state_dict(self, state: dict[str, Any] | None, spent_s: float) -> None:
        """Add the times of earlier attempts; `state` is from the checkpoint, None without one.

        What of their `spent_s` in all is not in the checkpoint is charged to `lost`.
        """
        accounts: dict[Account, float] = dict(state["accounts_s"]) if state else {}
        lost_s = max(0.0, spent_s - sum(accounts.values()))
        accounts["lost"] = accounts.get("lost", 0.0) + lost_s
        for name, seconds in accounts.items():
            self._spent_s[name] = self._spent_s.get(name, 0.0) + seconds
        self._before_s += sum(accounts.values())
        if state:
            self._step_ms = state["step_ms"].tolist()
            self.data_wait_s = state["data_wait_s"]
            self._compute_ms = state.get("compute_ms", 0.0)
            self._log_point = _LogPoint(*state["log_point"])

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Mark a part of a step for the profiler, and time it without a sync if rows report it.

        On a GPU, waiting for data is the device's idle time, not the host's: the GPU may still have
        work queued.
        """
        with record_function(PHASE_PREFIX + name):
            if name in _WAITING | _COMPUTING:
                began = self._now()
                yield
                self._spans.append((name, began, self._now()))
            else:
                yield

    def _now(self) -> _Moment:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def mark(self) -> None:
        """Mark the end of a step and the start of the next."""
        self._marks.append(self._now())

    def read_period(self) -> PeriodTimes:
        """Return the times since the last log point; the device must be idle."""
        self._read_marks()
        since = self._log_point
        compute_ms, self._compute_ms = self._compute_ms, 0.0
        self._log_point = _LogPoint(len(self._step_ms), self.train_s, self.data_wait_s)
        return PeriodTimes(
            steps_ms=self._step_ms[since.steps :],
            compute_ms=compute_ms,
            train_s=self._log_point.train_s - since.train_s,
            data_wait_s=self._log_point.data_wait_s - since.data_wait_s,
        )

    def _read_marks(self) -> None:
        """Turn marks into times; the device must be idle."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        self._step_ms += [_between_ms(a, b) for a, b in pairs if a is not None and b is not None]
        self._marks = self._marks[-1:]
        for name, began, ended in self._spans:
            span_ms = _between_ms(began, ended)
            self._compute_ms += span_ms * (name in _COMPUTING)
            self.data_wait_s += span_ms / 1000 * (name in _WAITING)
        self._spans.clear()

    def skip_interval(self) -> None:
        """Mark a new start: the time since the last mark is not a step, but a checkpoint."""
        self._marks.append(None)
        self.mark()

    def stop_timer(self) -> None:
        """Drop the last mark: what follows is not a step, but an evaluation or an epoch's end."""
        self._marks = []

    def step_ms(self, percentile: float) -> float | None:
        """Return a percentile of all step times so far, in ms; None before the first step."""
        return float(np.percentile(self._step_ms, percentile)) if self._step_ms else None


def _between_ms(a: _Moment, b: _Moment) -> float:
    if isinstance(a, float):
        assert isinstance(b, float)
        return (b - a) * 1000
    assert isinstance(b, torch.cuda.Event)
    return float(a.elapsed_time(b))
