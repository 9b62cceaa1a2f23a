"""Kill runs at random moments, in every way in which they are killed on a cluster."""

import itertools
import math
import random
import signal
import time
from collections.abc import Callable
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
SAVING_S = 20.0  # how long to wait for a checkpoint to be written; then any moment will do
ORPHANS_S = 20.0  # how long to wait for a row that ranks write without their launcher


@dataclass
class Kill:
    """One kill; the fields with defaults are filled in once a later start has resumed."""

    number: int
    kind: Kind
    what: str  # the kind with its details, for messages
    at_step: int | None  # reached by the killed start; None if it had not resumed yet
    from_step: int | None = None  # from which a later start resumed
    first_row_s: float | None = None  # from the command to the first new row of the next start

    @property
    def lost_steps(self) -> int | None:
        """Steps that had to be trained again, as far as rows and checkpoints show."""
        if self.from_step is None or self.at_step is None:
            return None
        return max(0, self.at_step - self.from_step)


class Killer:
    """Start runs of a plan until they have finished, and kill them while kills are left.

    `mark` begins the marks of all processes that it starts; `scratch` is for their temporary files.
    """

    def __init__(self, plan: Plan, mark: str, scratch: Path, seed: int) -> None:
        self.done: list[Kill] = []
        self.second_starts = 0  # starts while orphans ran; all were refused
        self.plan, self._mark, self._scratch = plan, mark, scratch
        self._random = random.Random(seed)
        # All kinds in random order, again and again.
        rounds = (self._random.sample(KINDS, len(KINDS)) for _ in itertools.count())
        self._kinds = itertools.chain.from_iterable(rounds)
        self._kind = next(self._kinds)  # of the next kill
        self._kills = self._starts = 0
        self._period_s = 0.0
        self.start_up_s = math.inf  # the shortest time from a command to its first row
        self._open: list[Kill] = []  # kills after which no start has resumed yet
        self._unmeasured: list[Kill] = []  # kills after which a start resumed, but has no row yet

    def allow(self, kills: int, period_s: float) -> None:
        """Allow this number of kills from now on; `period_s` is the time between two rows."""
        self._kills, self._period_s = kills, period_s

    def run(self, name: str) -> None:
        """Start the run of this name until it has finished, with kills in between.

        Raises:
            CannotTell: the run failed by itself or hangs.
        """
        watch = Watch(self.plan.folder / name)
        while not watch.finished:
            watch.begin()
            start = self._start(watch)
            try:
                if self._killed(start, self._kind if len(self.done) < self._kills else None):
                    self._kind = next(self._kinds)
                elif not watch.finished:
                    ended = f"ended by itself, with exit code {start.launcher.returncode}"
                    raise CannotTell(f"{watch.path}: {ended}", start.log)
            finally:
                start.kill_all()
        for kill in self._open:
            self._print(kill, "nothing was left to do")
        self._open, self._unmeasured = [], []

    def _start(self, watch: Watch) -> Start:
        self._starts += 1
        name = watch.path.name
        log = self.plan.folder / "logs" / f"start-{self._starts:03d}-{name}.log"
        log.parent.mkdir(exist_ok=True)
        mark = f"{self._mark}-{self._starts}"
        return Start(self.plan.command(name), log, mark, self._scratch, watch)

    def _killed(self, start: Start, kind: Kind | None) -> bool:
        """Wait for a random moment and kill; return whether it was killed.

        Without a kind, or if the run finishes first, wait for its end. Afterwards the start has
        ended, or its ranks are orphans.
        """
        watch = start.watch
        moment, delay_s = self._moment(start, kind)
        reached = self._wait(start, moment)
        ranks = start.ranks()  # read before the wait for a save: a save is too short for it
        if kind == "while saving":
            until = time.monotonic() + SAVING_S
            self._wait(start, lambda: watch.saving() or time.monotonic() > until, POLL_SAVING_S)
        elif reached:
            time.sleep(delay_s)
        too_late = watch.finished or (kind != "start-up" and len(ranks) < self.plan.ranks)
        if not reached or kind is None or too_late:
            self._wait(start, lambda: False)
            return False
        what = self._strike(start, kind, ranks)
        start.kill_all()
        self._notice(start)
        if kind == "while saving":
            torn = [name.removeprefix(".").removesuffix(".part") for name in watch.saving()]
            what += f" ({' and '.join(torn)} half written)" if torn else " (no save caught)"
        kill = Kill(len(self.done) + 1, kind, what, watch.last_step)
        self.done.append(kill)
        self._open.append(kill)
        return True

    def _moment(self, start: Start, kind: Kind | None) -> tuple[Callable[[], bool], float]:
        """Return the condition to wait for before this kind of kill, and the seconds after it."""
        watch = start.watch
        if kind is None:
            return lambda: False, 0.0
        if kind == "start-up":
            if self._random.random() < 0.5:  # soon after it takes the folder
                return lambda: watch.lease_taken, self._random.uniform(0, 0.1)
            until = start.began + self._random.uniform(0, self.start_up_s)
            return lambda: time.monotonic() >= until, 0.0
        # On average, kills are spread over the run, and each start saves a checkpoint or two.
        mean = max(self.plan.resolved.total_steps / (self._kills + 1), 2 * self.plan.save_every)
        ahead = self._random.uniform(0, 2 * mean)

        def trained() -> bool:
            step = watch.new_step
            return step is not None and step >= (watch.from_step or 0) + ahead

        return trained, self._random.uniform(0, self._period_s)

    def _wait(self, start: Start, until: Callable[[], object], every_s: float = POLL_S) -> bool:
        """Wait until the condition is true or the start ends; return whether it became true."""
        while not start.ended:
            if until():
                return True
            self._notice(start)
            start.check_active()
            time.sleep(every_s)
        self._notice(start)
        return False

    def _strike(self, start: Start, kind: Kind, ranks: dict[int, int]) -> str:
        if kind == "launcher":
            return self._kill_launcher(start, ranks)
        if kind == "one rank":
            rank = self._random.choice(sorted(ranks))
            processes.kill([ranks[rank]])
            start.wait_for_end(f"rank {rank} was killed")
            return f"one rank ({rank})"
        if kind in ("everything", "start-up"):
            start.kill_all()
        else:
            processes.kill(pid for _, pid in sorted(ranks.items()))  # rank 0, which writes, first
            start.wait_for_end("all ranks were killed")
        return kind

    def _kill_launcher(self, start: Start, ranks: dict[int, int]) -> str:
        """Kill torchrun alone: its ranks go on training, and a second start must be refused."""
        watch, before = start.watch, start.watch.new_step
        processes.kill([start.launcher.pid])
        start.launcher.wait()
        until = time.monotonic() + ORPHANS_S
        while watch.new_step == before and not watch.finished and time.monotonic() < until:
            time.sleep(POLL_S)
        progress = "trained on" if watch.new_step != before else "made no progress"
        # A frozen rank keeps the orphans from finishing before the second start is ready. It is not
        # rank 0, which holds the lease, if there is another.
        processes.kill([ranks[max(ranks)]], signal.SIGSTOP)
        if not watch.finished:
            self._expect_refusal(watch, ranks[0])
        if watch.finished:
            return "launcher (its orphans finished)"
        self.second_starts += 1
        return f"launcher (its orphans {progress}, a second start was refused)"

    def _expect_refusal(self, watch: Watch, owner: int) -> None:
        """Start the same command while `owner` runs in the folder; raise NotRefused if it can."""
        second = self._start(Watch(watch.path))
        try:
            until = time.monotonic() + HANG_S
            while not (second.ended or second.watch.attempt) and time.monotonic() < until:
                time.sleep(POLL_S)
            text = second.log.read_text(errors="replace")
            refused = f"pid {owner} on " in text and "has been working in it" in text
            if not (watch.finished or (second.ended and second.launcher.returncode and refused)):
                why = f"a second start was not refused while pid {owner}, an orphan, worked in it"
                raise NotRefused(f"{watch.path}: {why}", second.log)
        finally:
            second.kill_all()

    def _notice(self, start: Start) -> None:
        """Record from where this start resumed, and when it wrote its first row."""
        if self._open and (from_step := start.watch.from_step) is not None:
            for kill in self._open:
                kill.from_step = from_step
                self._print(kill, f"resumed from step {from_step}")
            self._unmeasured, self._open = self._open[-1:], []
        if start.first_row_s is None and start.watch.new_step is not None:
            start.first_row_s = time.monotonic() - start.began
            self.start_up_s = min(self.start_up_s, start.first_row_s)
            for kill in self._unmeasured:
                kill.first_row_s = start.first_row_s
            self._unmeasured = []

    def _print(self, kill: Kill, outcome: str) -> None:
        at = "before the first step" if kill.at_step is None else f"at step {kill.at_step}"
        out.print(f"kill {kill.number}/{self._kills}: {kill.what} {at}; {outcome}")
