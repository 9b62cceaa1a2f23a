"""Resume: a run that is killed any number of times ends in the bits of one that is not."""

from __future__ import annotations

import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
from rich.table import Table

from harness.doctor.chaos import plan as plans
from harness.doctor.chaos import processes
from harness.doctor.chaos.compare import Difference, compare, losses_apart_pct, put_aside
from harness.doctor.chaos.kills import KINDS, Kill, Killer
from harness.doctor.chaos.plan import Plan
from harness.doctor.chaos.starts import CannotTell
from harness.errors import EXIT_CANNOT_TELL, EXIT_FAILED, EXIT_GOOD, BadInput
from harness.logging.schema import Result
from harness.system.console import count, duration, out

MOST_SHOWN = 10
RUNS_WITHOUT_A_KILL = 5


def check(
    words: Sequence[str],
    *,
    ranks: int | None,
    steps: int,
    kills: int,
    seed: int,
    keep: Path | None,
    loss_bound_pct: float,
) -> int:
    """Train undisturbed, train again under kills, compare.

    Args:
        words: [CONFIG.yaml] [--section.key value ...], as launch/train.py takes them.
        keep: a new folder for the runs; by default one that is removed if all is good.
        loss_bound_pct: where equal bits are not promised, how far losses may lie apart.

    Returns:
        Exit code: the same, or not.

    Raises:
        BadInput: before anything is started.
        CannotTell: a run failed or hangs.
    """
    folder = _new_folder(keep)
    try:
        plan = plans.make(words, ranks=ranks, steps=steps, folder=folder)
    except BaseException:
        folder.rmdir()
        raise
    code, mark = EXIT_CANNOT_TELL, uuid.uuid4().hex
    try:
        with _nothing_left(mark) as scratch:
            code = _trial(plan, Killer(plan, mark, scratch, seed), kills, loss_bound_pct)
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
def _nothing_left(mark: str) -> Iterator[Path]:
    """End all processes of the trial, whichever way it ends; SIGTERM and SIGHUP end it as Ctrl-C.

    Yields a folder for temporary files; it is removed.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # Under nohup, SIGHUP is ignored, and stays so.
    ends = [each for each in (signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(each) is not signal.SIG_IGN]  # fmt: skip
    before = [signal.signal(each, interrupt) for each in ends]
    guard = processes.Guard(mark)
    # Not within the runs' folder: sockets lie in it, whose paths must be short.
    scratch = Path(tempfile.mkdtemp(prefix="hd-"))
    try:
        yield scratch
    finally:
        processes.end(mark)
        shutil.rmtree(scratch, ignore_errors=True)
        guard.close()
        for each, handler in zip(ends, before, strict=True):
            signal.signal(each, handler)


def _trial(plan: Plan, killer: Killer, kills: int, bound_pct: float) -> int:
    """The runs, the table, the verdict."""
    bound = None if plan.exact else bound_pct
    facts = plan.resolved.lines()[:-1]  # all but the folder
    out.print("\n".join([*facts, *(f"{'note':>12}: {note}" for note in plan.notes)]))
    undisturbed = plan.folder / "undisturbed"
    killer.run(undisturbed.name)
    result = Result.model_validate_json((undisturbed / "result.json").read_text())
    period_s = plan.resolved.config.log.every_steps * (result.step_ms_p50 or 0.0) / 1000
    out.print(
        f"undisturbed: {count(result.steps, 'step')} in {duration(result.wall_s)}, "
        f"the first row after {killer.start_up_s:.1f} s"
    )
    killer.allow(kills, period_s)
    found = _killed_runs(plan, killer, kills, bound)
    _print_table(killer.done, plan)
    if killer.second_starts:
        out.print(
            f"starts while orphans of a killed launcher lived: {killer.second_starts}, all refused"
        )
    torn = sum(put_aside(plan.folder / name) for name in found)
    if torn:
        out.print(f"torn while saving, put aside and never used: {count(torn, 'checkpoint')}")
    return _verdict(plan, killer, found, bound)


def _killed_runs(
    plan: Plan, killer: Killer, kills: int, bound: float | None
) -> dict[str, list[Difference]]:
    """Runs until all kills are done; how each differs from the undisturbed one."""
    found: dict[str, list[Difference]] = {}
    in_vain = 0
    while len(killer.done) < kills:
        name, before = f"killed-{len(found) + 1}" if found else "killed", len(killer.done)
        killer.run(name)
        found[name] = compare(plan.folder / "undisturbed", plan.folder / name, bound_pct=bound)
        here = len(killer.done) - before
        differ = count(len(found[name]), "difference") if found[name] else "no difference"
        out.print(f"{name}: finished after {count(here, 'kill')}; {differ}")
        in_vain = 0 if here else in_vain + 1
        if in_vain == RUNS_WITHOUT_A_KILL:
            raise CannotTell("the runs end before they can be killed: give more --steps")
    return found


def _verdict(
    plan: Plan, killer: Killer, found: dict[str, list[Difference]], bound: float | None
) -> int:
    """The last word; before a bad one, whether runs differ here even if nobody kills them."""
    undisturbed = plan.folder / "undisturbed"
    what = "the same bits" if bound is None else f"the same losses within {bound:g} %"
    all_found = [f"{name}: {each}" for name, differ in found.items() for each in differ]
    if not all_found:
        runs = count(len(found), "killed run")
        parts = "weights, momentum, BatchNorm, rows, validation, digests"
        if bound is not None:
            apart = max(losses_apart_pct(undisturbed, plan.folder / name) for name in found)
            parts = f"{apart:.2g} % apart at most; rows and digests complete"
        out.print(f"{what}: yes ({runs} against the undisturbed one: {parts})")
        return EXIT_GOOD
    out.print("\n".join(all_found[:MOST_SHOWN]))
    if len(all_found) > MOST_SHOWN:
        out.print(f"and {len(all_found) - MOST_SHOWN:,} more")
    if all(each.bits for differ in found.values() for each in differ):
        out.print("control: a second undisturbed run")
        killer.run("control")
        if differ := compare(undisturbed, plan.folder / "control", bound_pct=bound):
            out.print(f"{what}: cannot tell: undisturbed runs differ here too: {differ[0]}")
            return EXIT_CANNOT_TELL
    out.print(f"{what}: no: {all_found[0]}")
    return EXIT_FAILED


def _print_table(kills: Sequence[Kill], plan: Plan) -> None:
    table = Table("kind of kill", "kills", "steps lost, mean", "most", "first row, mean s", "most")
    for column in table.columns[1:]:
        column.justify = "right"
    for kind in (*KINDS, "all"):
        these = [kill for kill in kills if kind in (kill.kind, "all")]
        lost = [kill.lost_steps for kill in these if kill.lost_steps is not None]
        to_row_s = [kill.first_row_s for kill in these if kill.first_row_s is not None]
        table.add_row(
            kind, str(len(these)), *_mean_and_most(lost, "d"), *_mean_and_most(to_row_s, ".1f")
        )
    every = plan.resolved.config.log.every_steps
    out.print(table)
    out.print(
        f"steps lost: from the last row or checkpoint to where it went on; a row comes every "
        f"{every} steps. first row: from the next command to what it wrote first"
    )


def _mean_and_most(values: Sequence[float], form: str) -> tuple[str, str]:
    return (f"{np.mean(values):.1f}", f"{max(values):{form}}") if values else ("", "")
