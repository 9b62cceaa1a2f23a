"""Clock: where the time of a run goes, and how long each step takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from harness.system.process import process_age_s

Account = Literal["start_up", "compile", "train", "evaluate", "checkpoint", "lost"]

_Span = tuple[torch.cuda.Event, torch.cuda.Event]
"""Around something on a GPU."""


@dataclass(frozen=True)
class PeriodTimes:
    """How long a log period took: each of its steps, and all of it.

    Attributes:
        compute_ms: this rank's, of all steps together, up to where it may wait for other ranks.
    """

    steps_ms: list[float]
    compute_ms: float
    train_s: float
    data_wait_s: float


class _LogPoint(NamedTuple):
    """Where the clock stood at the last log point."""

    steps: int
    train_s: float
    data_wait_s: float


class Clock:
    """Every moment since the process began is charged to exactly one account.

    Step times are taken by device events on a GPU and by the clock on a CPU; nothing waits for the
    device between log points.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._account: Account = "start_up"
        self._spent_s: dict[Account, float] = {"start_up": 0.0}
        self._started = time.perf_counter() - process_age_s()
        self._since = self._started
        self._marks: list[torch.cuda.Event | float | None] = []
        self._step_ms: list[float] = []
        self._log_point = _LogPoint(0, 0.0, 0.0)
        self._before_s = 0.0
        self._computed: list[_Span] = []
        self._waited: list[_Span] = []
        self._compute_ms = 0.0
        self.data_wait_s = 0.0
        self.energy_j: float | None = None  # of all ranks' GPUs in the account `train`

    @contextmanager
    def account(self, name: Account) -> Iterator[None]:
        """Charge the time of this block to an account, and go on with the former after it."""
        before = self._account
        self._charge(name)
        yield
        self._charge(before)

    def _charge(self, then: Account) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # work still under way belongs to the old account
        now = time.perf_counter()
        self._spent_s[self._account] = self._spent_s.get(self._account, 0.0) + now - self._since
        self._account, self._since = then, now

    @property
    def accounts_s(self) -> dict[str, float]:
        """Seconds of each account up to now, over all attempts; they add up to `total_s`."""
        now = time.perf_counter()
        spent: dict[str, float] = {str(name): s for name, s in self._spent_s.items()}
        spent[self._account] = spent.get(self._account, 0.0) + now - self._since
        return spent

    @property
    def train_s(self) -> float:
        """Seconds of the account `train` up to now."""
        return self.accounts_s.get("train", 0.0)

    @property
    def wall_s(self) -> float:
        """Seconds since the process began."""
        return time.perf_counter() - self._started

    @property
    def total_s(self) -> float:
        """Seconds of all attempts, those between them left out."""
        return self._before_s + self.wall_s

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of the clock; the device must be idle."""
        self._read_marks()
        return {
            "accounts_s": self.accounts_s,
            "data_wait_s": self.data_wait_s,
            "compute_ms": self._compute_ms,
            "energy_j": self.energy_j,
            "log_point": list(self._log_point),
            "step_ms": torch.tensor(self._step_ms, dtype=torch.float32),
        }

    def go_on(self, state: dict[str, Any] | None, spent_s: float) -> None:
        """Add what earlier attempts took.

        Args:
            state: of the checkpoint; none if the run begins anew.
            spent_s: time of all earlier attempts; what the checkpoint knows nothing of was lost.
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
            self.energy_j = state.get("energy_j")
            self._compute_ms = state.get("compute_ms", 0.0)
            self._log_point = _LogPoint(*state["log_point"])

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """The loader is asked for a batch; on a GPU, what counts is how long that stands still.

        The host does not wait there, and where it does, the GPU may still have work.
        """
        if self._device.type == "cuda":
            with _span(self._waited):
                yield
        else:
            began = time.perf_counter()
            yield
            self.data_wait_s += time.perf_counter() - began

    @contextmanager
    def computing(self) -> Iterator[None]:
        """A part of a step in which this rank waits for no other one; not waited for on a GPU."""
        if self._device.type == "cuda":
            with _span(self._computed):
                yield
        else:
            began = time.perf_counter()
            yield
            self._compute_ms += 1000 * (time.perf_counter() - began)

    def mark(self) -> None:
        """A step begins or ends here."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def read_period(self) -> PeriodTimes:
        """What the steps since the last log point took; the device must be idle."""
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
        pairs = zip(self._marks, self._marks[1:], strict=False)
        self._step_ms += [_between_ms(a, b) for a, b in pairs if a is not None and b is not None]
        self._marks = self._marks[-1:]
        self._compute_ms += _take_ms(self._computed)
        self.data_wait_s += _take_ms(self._waited) / 1000

    def mark_anew(self) -> None:
        """What lies between the last mark and here is not a step: a checkpoint."""
        self._marks.append(None)
        self.mark()

    def forget_mark(self) -> None:
        """What follows is not a step: an evaluation, the end of an epoch."""
        self._marks = []

    def step_ms(self, percentile: float) -> float | None:
        """Percentile over all steps so far; none without steps."""
        return float(np.percentile(self._step_ms, percentile)) if self._step_ms else None


@contextmanager
def _span(spans: list[_Span]) -> Iterator[None]:
    """Time what the GPU does, or stands still for, in this block; nothing is waited for."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    yield
    end.record()
    spans.append((begin, end))


def _take_ms(spans: list[_Span]) -> float:
    """How long they took together; none is left. The device must be idle."""
    taken_ms = sum(_between_ms(begin, end) for begin, end in spans)
    spans.clear()
    return taken_ms


def _between_ms(a: torch.cuda.Event | float, b: torch.cuda.Event | float) -> float:
    if isinstance(a, float):
        assert isinstance(b, float)
        return (b - a) * 1000
    assert isinstance(b, torch.cuda.Event)
    return float(a.elapsed_time(b))
