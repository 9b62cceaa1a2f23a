"""The history: a table of runs, chosen, sorted, on the console or as Markdown."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.config import Config, fields
from harness.config.load import as_text, nearest
from harness.errors import BadInput
from harness.logging.schema import Row
from harness.results import source
from harness.results.load import SILENT, LoadedRun, config_of, environment, find_runs
from harness.schedule import ENDS
from harness.system.console import count, duration, err, out

SHORT = {"model": "model.name", "seed": "run.seed"}
"""Short for a setting, in --only."""

TITLES = (
    "run", "state", "epoch", "top-1 %", "images/s", "left", "model", "devices", "last active",
)  # fmt: skip
NUMBERS = range(2, 6)


@dataclass(frozen=True)
class Line:
    """What the history tells of a run; None is what cannot be told.

    Attributes:
        may_end_earlier: than `left_s` says, at a target.
        device: what it computes on, in the words that --only may use.
    """

    path: Path
    state: str
    epoch: float | None
    epochs: float | None
    top1_pct: float | None
    images_per_second: float | None
    left_s: float | None
    may_end_earlier: bool
    devices: str
    device: tuple[str, ...]
    active_at: float | None
    config: Config


SORTS: dict[str, Callable[[Line], Any]] = {
    # Numbers in names count as numbers: seed 2 comes before seed 10.
    "name": lambda line: [
        int(part) if at % 2 else part for at, part in enumerate(re.split(r"(\d+)", line.path.name))
    ],
    "state": lambda line: line.state,
    "epoch": lambda line: line.epoch,
    "top1": lambda line: line.top1_pct,
    "images_per_second": lambda line: line.images_per_second,
    "left": lambda line: line.left_s,
    "active": lambda line: line.active_at,
}


def show_runs(
    addresses: Sequence[str],
    *,
    only: Sequence[str] = (),
    sort: str = "name",
    reverse: bool = False,
    markdown: bool = False,
) -> None:
    """A line for each run; one that cannot be read is named on stderr, and hides no other.

    Args:
        addresses: folders of runs, run folders, or globs of either.
        only: `KEY=VALUE`, which must all hold.
        sort: a key of SORTS; what is not known comes last, also in reverse.

    Raises:
        BadInput: no such folder or key, no run can be read, or none fits.
    """
    if sort not in SORTS:
        raise BadInput(f"--sort {sort}: no such key{nearest(sort, list(SORTS))}")
    wishes = [_wish(word) for word in only]
    lines, refused = _read([path for address in addresses for path in _folders(address)])
    chosen = _sorted([line for line in lines if _fits(line, wishes)], sort, reverse)
    if chosen:
        _print(chosen, markdown)
    for error in refused if lines else refused[:-1]:
        err.print(Text(f"left out: {' '.join(str(error).split())}"))
    if not lines:
        raise refused[-1]
    if not chosen:
        raise BadInput(f"--only {', '.join(only)}: no run fits, of {count(len(lines), 'run')}")


def left_s(rows: Sequence[Row], config: Config) -> float | None:
    """Time that the run still needs from its last row on; None where nothing tells.

    Steps take their mean time so far, validations as long as the last one; before the first,
    they are left out.
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
        more_s = max(0.0, 60 * schedule.max_minutes - last.train_s)
        end = min(end, last.step + math.ceil(more_s / step_s))
    scored = [row for row in rows if row.val_s is not None]
    every = config.eval.every_epochs * steps_per_epoch
    validations = math.ceil(end / every) - last.step // every if last.step < end else 0
    due_here = last.step % every == 0 or last.step >= end
    if due_here and not (scored and scored[-1].step == last.step):
        validations += 1
    val_s = scored[-1].val_s or 0.0 if scored else 0.0
    return max(0, end - last.step) * step_s + validations * val_s


def _folders(address: str) -> list[Path]:
    if Path(address).is_file():
        return []  # a shell that spreads runs/* gives notes and lists too
    try:
        return source.folders_at(address)
    except BadInput:
        raise BadInput(
            f"{address}: no such folder; runs lie in --run.root, by default runs/"
        ) from None


def _read(folders: Sequence[Path]) -> tuple[list[Line], list[BadInput]]:
    """The runs one by one, so that the rows of one alone are in memory."""
    lines: list[Line] = []
    refused: list[BadInput] = []
    for found in find_runs(folders):
        if isinstance(found, BadInput):
            refused.append(found)
            continue
        try:
            lines.append(_line(found))
        except BadInput as error:
            refused.append(error)
    return lines, refused


def _line(run: LoadedRun) -> Line:
    config, result = config_of(run.path), run.result
    last = run.rows[-1] if run.rows else None
    scores = (row.val_top1_pct for row in reversed(run.rows) if row.kind == "val")
    speed = next((now for row in reversed(run.rows) if (now := row.images_per_second)), None)
    goes_on = run.state in ("running", "stopped", SILENT)
    devices, device = _devices(run)
    return Line(
        path=run.path,
        state=run.state,
        epoch=last.epoch if last else None,
        epochs=_epochs(config, last),
        top1_pct=next(scores, None),
        images_per_second=result.images_per_second if result else speed,
        left_s=left_s(run.rows, config) if goes_on else None,
        may_end_earlier=config.schedule.stop_at_top1_pct is not None,
        devices=devices,
        device=device,
        active_at=run.active_at,
        config=config,
    )


def _epochs(config: Config, last: Row | None) -> float | None:
    """How many epochs are planned; an evaluation has none."""
    if config.run.mode == "eval":
        return None
    planned, most = float(config.schedule.epochs), config.schedule.max_steps
    if most is not None and last is not None and last.step:
        return min(planned, most * last.epoch / last.step)
    return planned


def _devices(run: LoadedRun) -> tuple[str, tuple[str, ...]]:
    """The devices as the table shows them, and all words for one of them."""
    about = environment(run.path)
    told = about.get("device")
    device = told if isinstance(told, dict) else {}
    kind = run.result.device if run.result else str(device.get("type") or "")
    ranks = run.result.world_size if run.result else about.get("world_size")
    if not kind:
        return "", ()
    name = str(device.get("name") or kind)
    # A GPU's name says how fast it is; that of a CPU is long and says little.
    shown = kind if kind == "cpu" else name.removeprefix("NVIDIA ")
    return (f"{ranks} x {shown}" if ranks else shown), (kind, name, shown)


def _wish(word: str) -> tuple[str, str]:
    """`KEY=VALUE` of --only."""
    key, found, value = word.partition("=")
    if not found:
        raise BadInput(f"--only {word}: write KEY=VALUE, such as model=resnet50")
    known = ["state", "device", *SHORT, *(name for name, _ in fields())]
    if key not in known:
        raise BadInput(f"--only {word}: no such key{nearest(key, known)}")
    return key, value


def _fits(line: Line, wishes: Sequence[tuple[str, str]]) -> bool:
    return all(
        any(text == value or fnmatchcase(text, value) for text in _texts(line, key))
        for key, value in wishes
    )


def _texts(line: Line, key: str) -> tuple[str, ...]:
    """What a key of --only stands for."""
    if key == "state":
        return (line.state,)
    if key == "device":
        return line.device
    section, _, name = SHORT.get(key, key).partition(".")
    return (as_text(getattr(getattr(line.config, section), name)),)


def _sorted(lines: Sequence[Line], by: str, reverse: bool) -> list[Line]:
    of, named = SORTS[by], sorted(lines, key=SORTS["name"])
    known = sorted((line for line in named if of(line) is not None), key=of, reverse=reverse)
    return known + [line for line in named if of(line) is None]


def _print(lines: Sequence[Line], markdown: bool) -> None:
    names = [line.path.name for line in lines]
    rows = [
        # Of two runs with one name the folder tells which is which.
        _cells(line, str(line.path) if names.count(line.path.name) > 1 else line.path.name)
        for line in lines
    ]
    if markdown:
        rule = ["--:" if at in NUMBERS else "---" for at in range(len(TITLES))]
        for row in (TITLES, rule, *(map(_escaped, row) for row in rows)):
            out.print(Text(f"| {' | '.join(row)} |"))
        return
    table = Table(*TITLES, box=box.SIMPLE_HEAD, pad_edge=False)
    for at, column in enumerate(table.columns):
        column.no_wrap = True
        column.justify = "right" if at in NUMBERS else "left"
    for row in rows:
        table.add_row(*map(Text, row))
    # As wide as it gets: a name that is cut cannot be asked for.
    Console(width=10_000, soft_wrap=True, highlight=False).print(table)


def _cells(line: Line, name: str) -> list[str]:
    speed, at = line.images_per_second, line.active_at
    left = "" if line.left_s is None else duration(line.left_s)
    done = f"{line.epoch or 0:.1f}"
    return [
        name,
        line.state,
        "" if line.epochs is None else f"{done}/{_short(line.epochs)}",
        "" if line.top1_pct is None else f"{line.top1_pct:.2f}",
        "" if speed is None else f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}",
        f"< {left}" if left and line.may_end_earlier else left,
        line.config.model.name,
        line.devices,
        "" if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at)),
    ]


def _short(number: float) -> str:
    return f"{number:.0f}" if number == round(number) else f"{number:.1f}"


def _escaped(cell: str) -> str:
    """A cell's text where Markdown would read a column's end, or mark-up, in it."""
    return re.sub(r"([\\`*|<>\[\]])", r"\\\1", " ".join(cell.split()))
