"""Show a table of runs, filtered and sorted, on the console or as Markdown."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from operator import attrgetter
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.config import Config, fields, flat
from harness.config.load import as_text, nearest
from harness.errors import BadInput
from harness.logging.schema import Row
from harness.results import source
from harness.results.load import SILENT, LoadedRun, config_of, environment, load_run, run_folders
from harness.schedule import ENDS
from harness.system.console import count, duration, err, out

UNFINISHED = ("running", "stopped", SILENT)
SHORT = {"model": "model.name", "seed": "run.seed"}
"""Short names of settings in --only."""

TITLES = (
    "run", "state", "epoch", "top-1 %", "images/s", "left", "model", "devices", "last active",
)  # fmt: skip
NUMBERS = range(2, 6)

SORTS = {
    "name": "name_key", "state": "state", "epoch": "epoch", "top1": "top1_pct",
    "images_per_second": "images_per_second", "left": "left_s", "active": "active_at",
}  # fmt: skip
"""Values of --sort -> the field of a line by which lines are sorted."""


@dataclass(frozen=True)
class Line:
    """A line of the table; None stands for what is unknown.

    Attributes:
        name_key: the name, with numbers as numbers: seed 2 comes before seed 10.
        left_s: estimated seconds until the run ends.
        may_end_earlier: whether the run stops at a target, perhaps before `left_s`.
        devices: number and name of the devices, as shown.
        texts: the values of the run, by the keys of --only.
    """

    path: Path
    name_key: list[Any]
    state: str
    epoch: float | None
    epochs: float | None
    top1_pct: float | None
    images_per_second: float | None
    left_s: float | None
    may_end_earlier: bool
    model: str
    devices: str
    active_at: float | None
    texts: Mapping[str, tuple[str, ...]]


def show_runs(
    addresses: Sequence[str],
    *,
    only: Sequence[str] = (),
    sort: str = "name",
    reverse: bool = False,
    markdown: bool = False,
) -> None:
    """Show a line for each run; runs that cannot be read are named on stderr.

    Args:
        addresses: folders of runs, run folders, or globs of either.
        only: `KEY=VALUE` conditions, which must all hold.
        sort: a key of SORTS; unknown values come last, also in reverse.

    Raises:
        BadInput: no such folder or key, no run can be read, or no run matches.
    """
    if sort not in SORTS:
        raise BadInput(f"--sort {sort}: no such key{nearest(sort, list(SORTS))}")
    conditions = [_condition(text) for text in only]
    lines: list[Line] = []
    errors: list[BadInput] = []
    # One by one, so that only one run's rows are in memory at a time.
    for path in run_folders([path for address in addresses for path in _folders(address)]):
        try:
            lines.append(_line(load_run(path)))
        except BadInput as error:
            errors.append(error)
    chosen = [
        line for line in sorted(lines, key=attrgetter("name_key"))
        if all(_matches(line.texts[key], pattern) for key, pattern in conditions)
    ]  # fmt: skip
    known = [line for line in chosen if getattr(line, SORTS[sort]) is not None]
    known.sort(key=attrgetter(SORTS[sort]), reverse=reverse)
    chosen = known + [line for line in chosen if getattr(line, SORTS[sort]) is None]
    if chosen:
        _print(chosen, markdown)
    for left_out in errors if lines else errors[:-1]:
        err.print(Text(f"left out: {' '.join(str(left_out).split())}"))
    if not lines:
        raise errors[-1]
    if not chosen:
        raise BadInput(f"--only {', '.join(only)}: no run matches, of {count(len(lines), 'run')}")


def left_s(rows: Sequence[Row], config: Config) -> float | None:
    """Return the seconds that a run still needs after its last row; None if unknown.

    Steps are assumed to take their mean time so far, and validations the time of the last one;
    before the first validation, they count as 0 s.
    """
    last = rows[-1] if rows else None
    if last is None or not (last.step and last.epoch and last.train_s):
        return None
    if set(last.events or ()) & set(ENDS):
        return None
    step_s, steps_per_epoch = last.train_s / last.step, round(last.step / last.epoch)
    schedule = config.schedule
    end = min(schedule.epochs * steps_per_epoch, schedule.max_steps or math.inf)
    if schedule.max_minutes is not None:
        remaining_s = max(0.0, 60 * schedule.max_minutes - last.train_s)
        end = min(end, last.step + math.ceil(remaining_s / step_s))
    scored = [row for row in rows if row.val_s is not None]
    every = config.eval.every_epochs * steps_per_epoch
    validations = math.ceil(end / every) - last.step // every if last.step < end else 0
    due_now = last.step % every == 0 or last.step >= end
    if due_now and not (scored and scored[-1].step == last.step):
        validations += 1
    val_s = scored[-1].val_s or 0.0 if scored else 0.0
    return max(0, end - last.step) * step_s + validations * val_s


def _folders(address: str) -> list[Path]:
    if Path(address).is_file():
        return []  # a shell that expands runs/* also gives files, such as notes
    try:
        return source.folders_at(address)
    except BadInput:
        raise BadInput(
            f"{address}: no such folder; runs lie in --run.root, by default runs/"
        ) from None


def _line(run: LoadedRun) -> Line:
    config, result = config_of(run.path), run.result
    last = run.rows[-1] if run.rows else None
    scores = (row.val_top1_pct for row in reversed(run.rows) if row.kind == "val")
    speed = next((r for row in reversed(run.rows) if (r := row.images_per_second)), None)
    devices, device = _devices(run)
    settings = {key: (as_text(value),) for key, value in flat(config).items()}
    return Line(
        path=run.path,
        name_key=[int(p) if i % 2 else p for i, p in enumerate(re.split(r"(\d+)", run.path.name))],
        state=run.state,
        epoch=last.epoch if last else None,
        epochs=_epochs(config, last),
        top1_pct=next(scores, None),
        images_per_second=result.images_per_second if result else speed,
        left_s=left_s(run.rows, config) if run.state in UNFINISHED else None,
        may_end_earlier=config.schedule.stop_at_top1_pct is not None,
        model=config.model.name,
        devices=devices,
        active_at=run.active_at,
        texts={"state": (run.state,), "device": device} | settings,
    )


def _epochs(config: Config, last: Row | None) -> float | None:
    """Return the number of planned epochs; None for an evaluation."""
    if config.run.mode == "eval":
        return None
    planned, max_steps = float(config.schedule.epochs), config.schedule.max_steps
    if max_steps is not None and last is not None and last.step:
        return min(planned, max_steps * last.epoch / last.step)
    return planned


def _devices(run: LoadedRun) -> tuple[str, tuple[str, ...]]:
    """Return the devices as the table shows them, and all names of one of them."""
    about = environment(run.path)
    recorded = about.get("device")
    device = recorded if isinstance(recorded, dict) else {}
    kind = run.result.device if run.result else str(device.get("type") or "")
    ranks = run.result.world_size if run.result else about.get("world_size")
    if not kind:
        return "", ()
    name = str(device.get("name") or kind)
    # The name of a GPU says how fast it is; that of a CPU is long and says little.
    shown = kind if kind == "cpu" else name.removeprefix("NVIDIA ")
    return (f"{ranks} x {shown}" if ranks else shown), (kind, name, shown)


def _condition(text: str) -> tuple[str, str]:
    """Return key and value of a `KEY=VALUE` of --only."""
    key, equals, value = text.partition("=")
    if not equals:
        raise BadInput(f"--only {text}: write KEY=VALUE, such as model=resnet50")
    known = ["state", "device", *SHORT, *(name for name, _ in fields())]
    if key not in known:
        raise BadInput(f"--only {text}: no such key{nearest(key, known)}")
    return SHORT.get(key, key), value


def _matches(texts: Sequence[str], pattern: str) -> bool:
    return any(text == pattern or fnmatchcase(text, pattern) for text in texts)


def _print(lines: Sequence[Line], markdown: bool) -> None:
    names = [line.path.name for line in lines]
    rows = [
        # If two runs have the same name, show their folders.
        _cells(line, str(line.path) if names.count(line.path.name) > 1 else line.path.name)
        for line in lines
    ]
    if markdown:
        rule = ["--:" if i in NUMBERS else "---" for i in range(len(TITLES))]
        for row in (TITLES, rule, *(map(_escaped, row) for row in rows)):
            out.print(Text(f"| {' | '.join(row)} |"))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, title in enumerate(TITLES):
        table.add_column(title, no_wrap=True, justify="right" if i in NUMBERS else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    # Without a limit on the width, as a truncated name could not be used in a command.
    Console(width=10_000, soft_wrap=True, highlight=False).print(table)


def _cells(line: Line, name: str) -> list[str]:
    speed, active_at = line.images_per_second, line.active_at
    left = "" if line.left_s is None else duration(line.left_s)
    done = f"{line.epoch or 0:.1f}"
    return [
        name,
        line.state,
        "" if line.epochs is None else f"{done}/{_short(line.epochs)}",
        "" if line.top1_pct is None else f"{line.top1_pct:.2f}",
        "" if speed is None else f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}",
        f"< {left}" if left and line.may_end_earlier else left,
        line.model,
        line.devices,
        "" if active_at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(active_at)),
    ]


def _short(number: float) -> str:
    return f"{number:.0f}" if number == round(number) else f"{number:.1f}"


def _escaped(cell: str) -> str:
    """Return the text with escapes where Markdown would read markup or the end of a column."""
    return re.sub(r"([\\`*|<>\[\]])", r"\\\1", " ".join(cell.split()))
