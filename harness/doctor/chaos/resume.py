"""Check that a run that is killed any number of times ends in the bits of an undisturbed one."""

import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from harness.checkpoint.store import ASIDE
from harness.doctor.chaos import plan as plans
from harness.doctor.chaos import processes
from harness.doctor.chaos.compare import Difference, compare, loss_difference_pct
from harness.doctor.chaos.kills import KINDS, Kill, Killer
from harness.doctor.chaos.starts import CannotTell
from harness.errors import EXIT_CANNOT_TELL, EXIT_FAILED, EXIT_GOOD, BadInput
from harness.logging.schema import Result
from harness.system.console import count, duration, out, right_table

MOST_SHOWN = 10
RUNS_WITHOUT_A_KILL = 5


def check(
    args: Sequence[str],
    *,
    ranks: int | None,
    steps: int,
    kills: int,
    seed: int,
    keep: Path | None,
    loss_bound_pct: float,
) -> int:
    """Train undisturbed, train again under kills, compare; print the verdict.

    Return the exit code: 0 the same, 1 not the same, 3 undisturbed runs differ too.

    Args:
        args: [CONFIG.yaml] [--section.key value ...], as launch/train.py takes them.
        keep: a new folder for the runs; by default a temporary one, removed on a good verdict.
        loss_bound_pct: how far losses may differ if equal bits are not guaranteed.

    Raises:
        BadInput: the input does not allow the trial; nothing was started.
        CannotTell: a run failed or hangs.
    """
    folder = _new_folder(keep)
    try:
        plan = plans.make(args, ranks=ranks, steps=steps, folder=folder)
    except BaseException:
        folder.rmdir()
        raise
    code, mark = EXIT_CANNOT_TELL, uuid.uuid4().hex
    try:
        with _cleaned_up(mark) as scratch:
            code = _trial(Killer(plan, mark, scratch, seed), kills, loss_bound_pct)
    except CannotTell as error:
        if error.log:
            lines = error.log.read_text(errors="replace").splitlines()[-12:]
            out.print("\n".join(["", *lines, "", f"the end of {error.log}"]))
        raise
    finally:
        if code == EXIT_GOOD and keep is None:
            shutil.rmtree(folder, ignore_errors=True)
            out.print("the run folders were removed; to keep them: --keep DIR")
        else:
            out.print(f"the run folders and logs are in {folder}")
    return code


def _new_folder(keep: Path | None) -> Path:
    if keep is None:
        return Path(tempfile.mkdtemp(prefix="harness-doctor-"))
    try:
        keep.mkdir(parents=True, exist_ok=True)
        if any(keep.iterdir()):
            raise BadInput(f"--keep {keep}: is not empty; give a new folder")
    except OSError as error:
        raise BadInput(f"--keep {keep}: {error.strerror}; give a new folder") from None
    return keep.resolve()


@contextmanager
def _cleaned_up(mark: str) -> Iterator[Path]:
    """Kill all processes of the trial when it ends; SIGTERM and SIGHUP end it as Ctrl-C does.

    Yields a folder for temporary files, which is removed at the end.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    # nohup ignores SIGHUP, which must remain so.
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP)
               if signal.getsignal(number) is not signal.SIG_IGN]  # fmt: skip
    old_handlers = [signal.signal(number, interrupt) for number in numbers]
    guard = processes.Guard(mark)
    # Not within the runs' folder: it holds sockets, whose paths must be short.
    scratch = Path(tempfile.mkdtemp(prefix="hd-"))
    try:
        yield scratch
    finally:
        processes.kill_marked(mark)
        shutil.rmtree(scratch, ignore_errors=True)
        guard.close()
        for number, handler in zip(numbers, old_handlers, strict=True):
            signal.signal(number, handler)


def _trial(killer: Killer, kills: int, bound_pct: float) -> int:
    plan = killer.plan
    exact = not plan.resolved.world.on_gpu or plan.resolved.config.engine.deterministic
    bound = None if exact else bound_pct
    lines = plan.resolved.lines()[:-1]  # all but the folder
    out.print("\n".join([*lines, *(f"{'note':>12}: {note}" for note in plan.notes)]))
    undisturbed = plan.folder / "undisturbed"
    killer.run(undisturbed.name)
    result = Result.model_validate_json((undisturbed / "result.json").read_text())
    out.print(
        f"undisturbed: {count(result.steps, 'step')} in {duration(result.wall_s)}, "
        f"the first row after {killer.start_up_s:.1f} s"
    )
    log_every = plan.resolved.config.log.every_steps
    killer.allow(kills, period_s=log_every * (result.step_ms_p50 or 0.0) / 1000)
    differences = _killed_runs(killer, kills, bound)
    _print_table(killer.done, log_every)
    if starts := killer.second_starts:
        out.print(f"starts while orphans of a killed launcher ran: {starts}, all refused")
    folders = (plan.folder / name / "checkpoints" / ASIDE for name in differences)
    if torn := sum(len([*folder.glob("*.pt")]) for folder in folders):
        out.print(f"torn by a kill, put aside and never used: {count(torn, 'checkpoint')}")
    return _verdict(killer, differences, bound)


def _killed_runs(killer: Killer, kills: int, bound: float | None) -> dict[str, list[Difference]]:
    differences: dict[str, list[Difference]] = {}
    folder, runs_without_kill = killer.plan.folder, 0
    while (before := len(killer.done)) < kills:
        name = f"killed-{len(differences) + 1}" if differences else "killed"
        killer.run(name)
        entries = compare(folder / "undisturbed", folder / name, bound_pct=bound)
        differences[name] = entries
        new_kills = len(killer.done) - before
        text = count(len(entries), "difference") if entries else "no difference"
        out.print(f"{name}: finished after {count(new_kills, 'kill')}; {text}")
        runs_without_kill = 0 if new_kills else runs_without_kill + 1
        if runs_without_kill == RUNS_WITHOUT_A_KILL:
            raise CannotTell("the runs end before they can be killed: give more --steps")
    return differences


def _verdict(killer: Killer, differences: dict[str, list[Difference]], bound: float | None) -> int:
    """Print the verdict and return its exit code; a bad one needs two equal undisturbed runs."""
    folder = killer.plan.folder
    undisturbed = folder / "undisturbed"
    what = "the same bits" if bound is None else f"the same losses within {bound:g} %"
    lines = [f"{name}: {entry}" for name, entries in differences.items() for entry in entries]
    if not lines:
        runs = count(len(differences), "killed run")
        parts = "weights, momentum, BatchNorm, rows, validation, digests"
        if bound is not None:
            apart_pct = [loss_difference_pct(undisturbed, folder / run) for run in differences]
            parts = f"{max(apart_pct):.2g} % apart at most; rows and digests complete"
        out.print(f"{what}: yes ({runs} against the undisturbed one: {parts})")
        return EXIT_GOOD
    out.print("\n".join(lines[:MOST_SHOWN]))
    if len(lines) > MOST_SHOWN:
        out.print(f"and {len(lines) - MOST_SHOWN:,} more")
    if all(entry.bits for entries in differences.values() for entry in entries):
        out.print("control: a second undisturbed run")
        killer.run("control")
        if entries := compare(undisturbed, folder / "control", bound_pct=bound):
            out.print(f"{what}: cannot tell: undisturbed runs differ here too: {entries[0]}")
            return EXIT_CANNOT_TELL
    out.print(f"{what}: no: {lines[0]}")
    return EXIT_FAILED


def _print_table(kills: Sequence[Kill], log_every: int) -> None:
    head = ("kind of kill", "kills", "steps lost, mean", "most", "first row, mean s", "most")
    table = right_table(*head)
    for kind in (*KINDS, "all"):
        of_kind = [kill for kill in kills if kind in (kill.kind, "all")]
        lost = [kill.lost_steps for kill in of_kind if kill.lost_steps is not None]
        to_row_s = [kill.first_row_s for kill in of_kind if kill.first_row_s is not None]
        cells = (*_mean_and_most(lost, "d"), *_mean_and_most(to_row_s, ".1f"))
        table.add_row(kind, str(len(of_kind)), *cells)
    out.print(table)
    out.print(
        "steps lost: from the step where the run resumed to its last row or checkpoint; a row is "
        f"written every {log_every} steps. first row: from the next command to its first row"
    )


def _mean_and_most(values: Sequence[float], spec: str) -> tuple[str, str]:
    return (f"{np.mean(values):.1f}", f"{max(values):{spec}}") if values else ("", "")
