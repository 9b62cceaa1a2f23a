#!/usr/bin/env python3
"""Disturb jobs on a real Slurm again and again: none may be lost, none may end in other weights.

  python tests/studies/slurm_loops.py --times 10                every case ten times: about an hour
  python tests/studies/slurm_loops.py --times 10 --case preempted --case cut
  python tests/studies/slurm_loops.py --times 20 --case ports   two jobs on the same nodes at once

Each time has a Slurm of its own (as root, with the packages that tests/support/minislurm.py names)
and prints a line; a table ends it. Lines also go to --log, as JSON; times that stand there already
are not done again, so that what was interrupted goes on. Exit code 1 if a run was lost or differs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "support")]

from helpers import draw_tree, train
from rich.table import Table
from slurm_cases import CASES, CONFIG, MULTI, RANKS, Place, attempts
from slurm_cluster import cluster, missing
from submit_fates import SUBMITTED

from harness.run_folder import folder as run_folder
from harness.system.console import err, out


def disturb(case: Callable[[Place, str], str]) -> Callable[[Place, str, Path], dict[str, Any]]:
    """A run that is disturbed, and what came of it."""

    def once(place: Place, name: str, calm: Path) -> dict[str, Any]:
        job = case(place, name)
        state = place.slurm.wait(job)
        folder = place.folder(name)
        finished = state == "COMPLETED" and run_folder.read_state(folder) == "finished"
        found = [str(each) for each in place.differences(calm, name)] if finished else [state]
        if not finished:
            out.print(place.slurm.log(job))
        tries = attempts(folder)
        ended = [each["previous_ended"] for each in tries[1:]]
        return {"good": finished and not found and len(tries) > 1, "differences": found,
                "attempts": len(tries), "ended": ended}  # fmt: skip

    return once


def ports(place: Place, name: str, calm: Path) -> dict[str, Any]:
    """Two jobs that meet on the same nodes at once: each finds its own ranks only."""
    options = ("--nodelist=node1,node2", "--oversubscribe")
    short = ("--schedule.epochs", "1")
    names = [f"{name}-{letter}" for letter in "ab"]
    jobs = [place.submit(MULTI, each, *short, options=options) for each in names]
    states = [place.slurm.wait(job) for job in jobs]
    collided = [job for job in jobs if "EADDRINUSE" in place.slurm.log(job)]
    sizes = []
    for each in names:
        result = place.folder(each) / "result.json"
        sizes.append(json.loads(result.read_text())["world_size"] if result.exists() else None)
    good = states == ["COMPLETED"] * 2 and sizes == [2, 2] and not collided
    return {"good": good, "differences": [] if good else [*states, *map(str, sizes)],
            "attempts": 2, "ended": []}  # fmt: skip


DOINGS: dict[str, Callable[[Place, str, Path], dict[str, Any]]] = {
    **{name: disturb(case) for name, case in (CASES | SUBMITTED).items()}, "ports": ports,
}  # fmt: skip


def loop(case: str, times: range, work: Path, log: Path) -> list[dict[str, Any]]:
    """A case, on a cluster of its own, so many times."""
    photos = work / "photos"
    if not photos.exists():
        sizes = [(160, 90), (90, 160), (101, 101), (160, 30), (60, 80), (130, 125)]
        draw_tree(photos, classes=4, per_class=25, size=lambda k: sizes[k % 6], suffix=".jpg")
    lines: list[dict[str, Any]] = []
    for number in times:
        # A node that is lost stays lost.
        with cluster() as slurm:
            place = Place(slurm, work, photos)
            calm = undisturbed(place)
            began = time.monotonic()
            line = {"case": case, "number": number} | once(place, case, number, calm)
            line["s"] = round(time.monotonic() - began, 1)
        with log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        verdict, ended = "good" if line["good"] else "LOST", ", ".join(line["ended"])
        of = f"{line['attempts']} attempts ({ended}), {line['s']} s"
        out.print(f"{case} {number + 1}: {verdict}, {of} {line['differences'] or ''}")
        lines.append(line)
    return lines


def once(place: Place, case: str, number: int, calm: Path) -> dict[str, Any]:
    """A case once; what hangs is a loss, and the loop goes on."""
    try:
        return DOINGS[case](place, f"{case}-{number}-{os.getpid()}", calm)
    except AssertionError as error:
        return {"good": False, "differences": [str(error)], "attempts": 0, "ended": []}


def undisturbed(place: Place) -> Path:
    """The run that all are compared with."""
    calm = place.folder("calm")
    if run_folder.read_state(calm) != "finished":
        done = train(CONFIG, *place.flags("calm"), ranks=RANKS, cwd=place.cwd, timeout_s=900)
        if done.returncode:
            sys.exit(done.stderr)
    return calm


def main() -> int:
    """All cases that were asked for, then the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=10, help="of each case (default 10)")
    parser.add_argument("--case", action="append", choices=DOINGS, help="by default all")
    parser.add_argument("--log", type=Path, default=Path("slurm_loops.jsonl"), metavar="FILE")
    options = parser.parse_args()
    if lack := missing():
        err.print(f"error: no Slurm: {lack}")
        return 2
    os.environ.setdefault("HARNESS_PREFLIGHT", "off")
    os.environ.setdefault("HARNESS_CACHE", tempfile.mkdtemp(prefix="harness-cache-"))
    work = Path(tempfile.mkdtemp(prefix="slurm-loops-"))
    out.print(f"runs and logs: {work}")
    cases = options.case or list(DOINGS)
    text = options.log.read_text() if options.log.exists() else ""
    done = [json.loads(line) for line in text.splitlines()]
    for case in cases:
        mine = [line for line in done if line["case"] == case]
        done += loop(case, range(len(mine), options.times), work, options.log)
    table = Table("case", "times", "good", "attempts", "s, mean")
    for case in cases:
        mine = [line for line in done if line["case"] == case]
        good, tries = sum(line["good"] for line in mine), sum(line["attempts"] for line in mine)
        mean_s = sum(line["s"] for line in mine) / max(len(mine), 1)
        table.add_row(case, str(len(mine)), str(good), str(tries), f"{mean_s:.0f}")
    out.print(table)
    return 0 if all(line["good"] for line in done if line["case"] in cases) else 1


if __name__ == "__main__":
    sys.exit(main())
