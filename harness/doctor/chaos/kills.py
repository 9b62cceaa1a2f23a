"""Kills: one run after another, killed at random moments in every way that a cluster knows."""

from __future__ import annotations

import math
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from harness.doctor.chaos import processes
from harness.doctor.chaos.plan import Plan
from harness.doctor.chaos.starts import HANG_S, CannotTell, NotRefused, Start, Watch
from harness.system.console import out

Kind = Literal["one rank", "all ranks", "launcher", "while saving", "everything", "start-up"]
KINDS: tuple[Kind, ...] = get_args(Kind)

POLL_S, POLL_SAVING_S = 0.01, 0.001
SAVING_S = 20.0
"""So long a checkpoint is waited for; then any moment will do."""
ORPHANS_S = 20.0
"""So long a row is waited for that ranks write without their launcher."""


@dataclass
class Kill:
    """One of them; what came after it is known later."""

    number: int
    kind: Kind
    what: str
    at_step: int | None  # that its start had come to; none before it went on from anywhere
    from_step: int | None = None  # where a later start went on
    first_row_s: float | None = None  # from the command to the first new row of the next start

    @property
    def lost_steps(self) -> int | None:
        """Steps that had to be trained again, as far as rows tell."""
        if self.from_step is None or self.at_step is None:
            return None
        return max(0, self.at_step - self.from_step)


class Killer:
    """Starts runs of a plan until they have finished, and kills them while kills are left.

    Args:
        mark: of all processes that it starts.
        scratch: for their temporary files.
    """

    def __init__(self, plan: Plan, mark: str, scratch: Path, seed: int) -> None:
        self.done: list[Kill] = []
        self.second_starts = 0  # while orphans lived: all were refused
        self._plan, self._mark, self._scratch = plan, mark, scratch
        self._random = random.Random(seed)
        self._kinds = self._in_turn()
        self._kind = next(self._kinds)  # of the next kill
        self._kills = self._starts = 0
        self._period_s = 0.0
        self.start_up_s = math.inf  # the shortest, from a command to its first row
        self._open: list[Kill] = []  # nothing has gone on since
        self._unmeasured: list[Kill] = []  # something has, but has not trained yet

    def allow(self, kills: int, period_s: float) -> None:
        """From here on, kill so many times; rows come with this period."""
        self._kills, self._period_s = kills, period_s

    def run(self, name: str) -> None:
        """Start the run of this name, again and again, until it has finished.

        Raises:
            CannotTell: it ended by itself before it had finished, or hangs.
        """
        watch = Watch(self._plan.folder / name)
        while not watch.finished:
            watch.begin()
            start = self._start(name)
            try:
                if self._killed(start, watch, self._kind if self._left else None):
                    self._kind = next(self._kinds)
                else:
                    _expect_finished(start, watch)
            finally:
                start.kill_all()
        self._forget_open()

    @property
    def _left(self) -> int:
        return self._kills - len(self.done)

    def _in_turn(self) -> Iterator[Kind]:
        """Each kind once, in random order, then again."""
        while True:
            yield from self._random.sample(KINDS, len(KINDS))

    def _start(self, name: str) -> Start:
        self._starts += 1
        log = self._plan.folder / "logs" / f"start-{self._starts:03d}-{name}.log"
        log.parent.mkdir(exist_ok=True)
        mark = f"{self._mark}-{self._starts}"
        return Start(self._plan.command(name), log, mark, self._scratch)

    def _killed(self, start: Start, watch: Watch, kind: Kind | None) -> bool:
        """Wait for the moment, and kill; without a kind, or if the run is faster: wait for its end.

        In both cases the start is over then, or its ranks are orphans.
        """
        moment = self._moment(start, watch, kind)
        reached = self._wait(start, watch, moment, POLL_S)
        ranks = start.ranks()  # before it is waited for a save, which is short
        if kind == "while saving":
            self._wait(start, watch, _within(SAVING_S, watch.saving), POLL_SAVING_S)
        elif reached and kind != "start-up":
            time.sleep(self._random.uniform(0, self._period_s))
        too_late = watch.finished or (kind != "start-up" and len(ranks) < self._plan.ranks)
        if not reached or kind is None or too_late:
            self._wait(start, watch, lambda: False, POLL_S)
            return False
        what = self._strike(start, watch, kind, ranks)
        start.kill_all()
        self._notice(start, watch)
        kill = Kill(len(self.done) + 1, kind, what, watch.reached)
        if kind == "while saving":
            torn = [name.removeprefix(".").removesuffix(".part") for name in watch.saving()]
            kill.what += f" ({' and '.join(torn)} half written)" if torn else " (none was caught)"
        self.done.append(kill)
        self._open.append(kill)
        return True

    def _moment(self, start: Start, watch: Watch, kind: Kind | None) -> Callable[[], bool]:
        """What to wait for."""
        if kind is None:
            return lambda: False
        if kind == "start-up":
            if self._random.random() < 0.5:  # the moments in which it takes the folder
                return _later(lambda: watch.taken, self._random.uniform(0, 0.1))
            until = start.began + self._random.uniform(0, self.start_up_s)
            return lambda: time.monotonic() >= until
        # In the mean, kills are spread over the run, and each start leaves a checkpoint or two.
        mean = max(self._plan.steps / (self._kills + 1), 2 * self._plan.save_every)
        ahead = self._random.uniform(0, 2 * mean)

        def trained() -> bool:
            step = watch.new_step
            return step is not None and step >= (watch.from_step or 0) + ahead

        return trained

    def _wait(
        self, start: Start, watch: Watch, until: Callable[[], object], every_s: float
    ) -> bool:
        """Whether it came true before the start was over."""
        while not start.over:
            if until():
                return True
            self._notice(start, watch)
            start.expect_life(watch)
            time.sleep(every_s)
        self._notice(start, watch)
        return False

    def _strike(self, start: Start, watch: Watch, kind: Kind, ranks: dict[int, int]) -> str:
        """Kill; returns what exactly."""
        if kind == "launcher":
            return self._launcher(start, watch, ranks)
        if kind in ("everything", "start-up"):
            start.kill_all()
            return kind
        if kind == "one rank":
            rank = self._random.choice(sorted(ranks))
            processes.kill([ranks[rank]])
            start.wait_for_end(f"rank {rank} was killed")
            return f"one rank ({rank})"
        processes.kill(pid for _, pid in sorted(ranks.items()))  # rank 0, which writes, first
        start.wait_for_end("all ranks were killed")
        return kind

    def _launcher(self, start: Start, watch: Watch, ranks: dict[int, int]) -> str:
        """Kill torchrun alone: its ranks train on, and no second start may join them."""
        before = watch.new_step
        processes.kill([start.launcher.pid])
        start.launcher.wait()
        until = time.monotonic() + ORPHANS_S
        while watch.new_step == before and not watch.finished and time.monotonic() < until:
            time.sleep(POLL_S)
        went_on = "trained on" if watch.new_step != before else "stood still"
        # Held up by a rank that is frozen, they cannot finish while the second start gets ready;
        # rank 0, which holds the lease, is not the frozen one if there is another.
        processes.kill([ranks[max(ranks)]], signal.SIGSTOP)
        if not watch.finished:
            self._start_beside(watch, ranks[0])
        if watch.finished:
            return "launcher (its orphans finished)"
        self.second_starts += 1
        return f"launcher (its orphans {went_on}, a second start was refused)"

    def _start_beside(self, watch: Watch, owner: int) -> None:
        """The same command, while a run is at work: must be refused."""
        beside = Watch(watch.path)
        second = self._start(watch.path.name)
        try:
            until = time.monotonic() + HANG_S
            while not (second.over or beside.attempt) and time.monotonic() < until:
                time.sleep(POLL_S)
            said = second.log.read_text(errors="replace")
            refused = f"pid {owner} on " in said and "has been working in it" in said
            if not (watch.finished or (second.over and second.launcher.returncode and refused)):
                raise NotRefused(
                    f"{watch.path}: a second start was not refused while pid {owner}, an orphan, "
                    "worked in it",
                    second.log,
                )
        finally:
            second.kill_all()

    def _notice(self, start: Start, watch: Watch) -> None:
        """Where this start went on from, and when it wrote its first row."""
        if self._open and watch.from_step is not None:
            for kill in self._open:
                kill.from_step = watch.from_step
                self._say(kill, f"went on from step {watch.from_step}")
            self._unmeasured, self._open = self._open[-1:], []
        if start.first_row_s is None and watch.new_step is not None:
            start.first_row_s = time.monotonic() - start.began
            self.start_up_s = min(self.start_up_s, start.first_row_s)
            for kill in self._unmeasured:
                kill.first_row_s = start.first_row_s
            self._unmeasured = []

    def _forget_open(self) -> None:
        for kill in self._open:
            self._say(kill, "nothing was left to do")
        self._open, self._unmeasured = [], []

    def _say(self, kill: Kill, then: str) -> None:
        at = "before it had begun" if kill.at_step is None else f"at step {kill.at_step}"
        out.print(f"kill {kill.number}/{self._kills}: {kill.what} {at}; {then}")


def _expect_finished(start: Start, watch: Watch) -> None:
    if not watch.finished:
        code = start.launcher.returncode
        raise CannotTell(f"{watch.path}: ended by itself, with exit code {code}", start.log)


def _within(seconds: float, condition: Callable[[], object]) -> Callable[[], bool]:
    """True when the condition is, or when the time is over."""
    until = time.monotonic() + seconds
    return lambda: bool(condition()) or time.monotonic() > until


def _later(condition: Callable[[], bool], seconds: float) -> Callable[[], bool]:
    """True some time after the condition has first been so."""
    since: list[float] = []

    def passed() -> bool:
        if not since and condition():
            since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] >= seconds

    return passed
