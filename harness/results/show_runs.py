"""Show a table of runs, filtered and sorted, on the console or as Markdown."""

import math
import re
import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.config import Config, fields, flat
from harness.config.load import as_text, nearest
from harness.errors import BadInput, one_line
from harness.logging.schema import Row
from harness.results import source
from harness.results.load import SILENT, LoadedRun, environment, load_run, run_folders
from harness.run_folder.folder import config_of
from harness.schedule import ENDS
from harness.system.console import count, duration, err, out

SHORT = {"model": "model.name", "seed": "run.seed"}
"""Short names of settings in --only."""
TITLES = (
    "run", "state", "epoch", "top-1 %", "images/s", "left", "model", "devices", "last active",
)  # fmt: skip
NUMBERS = range(2, 6)
SORTS = ("name", "state", "epoch", "top1", "images_per_second", "left", "active")


class Line(NamedTuple):
    """A line of the table."""

    path: Path
    sorts: Mapping[str, Any]  # values by the keys of --sort; None stands for what is unknown
    texts: Mapping[str, tuple[str, ...]]  # values by the keys of --only
    cells: list[str]  # as they are shown, after the name


def show_runs(
    addresses: Sequence[str],
    *,
    only: Sequence[str] = (),
    sort: str = "name",
    reverse: bool = False,
    markdown: bool = False,
) -> None:
    """Show a line for each run at the addresses: folders of runs, run folders, or globs of either.

    All `KEY=VALUE` conditions of `only` must hold. What is unknown is sorted last, also in reverse.
    Runs that cannot be read are named on stderr.

    Raises:
        BadInput: no such folder or key, no run can be read, or no run matches.
    """
    if sort not in SORTS:
        raise BadInput(f"--sort {sort}: no such key{nearest(sort, [*SORTS])}")
    conditions = [_condition(text) for text in only]
    lines, errors = list[Line](), list[BadInput]()
    # One by one, so that only one run's rows are in memory at a time.
    for path in run_folders([path for address in addresses for path in _folders(address)]):
        try:
            lines.append(_line(load_run(path)))
        except BadInput as error:
            errors.append(error)
    chosen = [
        line for line in sorted(lines, key=lambda line: line.sorts["name"])
        if all(
            any(text == pattern or fnmatchcase(text, pattern) for text in line.texts[key])
            for key, pattern in conditions
        )
    ]  # fmt: skip
    known = [line for line in chosen if line.sorts[sort] is not None]
    known.sort(key=lambda line: line.sorts[sort], reverse=reverse)
    if chosen:
        _print(known + [line for line in chosen if line.sorts[sort] is None], markdown)
    for reason in errors if lines else errors[:-1]:
        err.print(Text(f"left out: {one_line(reason)}"))
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
    if not (last and last.step and last.epoch and last.train_s) or {*(last.events or ())} & {*ENDS}:
        return None
    step_s, steps_per_epoch = last.train_s / last.step, round(last.step / last.epoch)
    schedule = config.schedule
    end = min(schedule.epochs * steps_per_epoch, schedule.max_steps or math.inf)
    if schedule.max_minutes is not None:
        remaining_s = max(0.0, 60 * schedule.max_minutes - last.train_s)
        end = min(end, last.step + math.ceil(remaining_s / step_s))
    scored = ((row.step, row.val_s) for row in reversed(rows) if row.val_s is not None)
    scored_step, val_s = next(scored, (0, 0.0))
    every = config.eval.every_epochs * steps_per_epoch
    validations = math.ceil(end / every) - last.step // every if last.step < end else 0
    due_now = last.step % every == 0 or last.step >= end
    validations += due_now and scored_step != last.step
    return max(0, end - last.step) * step_s + validations * val_s


def _folders(address: str) -> list[Path]:
    if Path(address).is_file():
        return []  # a shell that expands runs/* also gives files, such as notes
    try:
        return source.folders_at(address)
    except BadInput:
        message = f"{address}: no such folder; runs lie in --run.root, by default runs/"
        raise BadInput(message) from None


def _line(run: LoadedRun) -> Line:
    config, result, active = config_of(run.path), run.result, run.active_at
    last = run.rows[-1] if run.rows else None
    top1 = next((row.val_top1_pct for row in reversed(run.rows) if row.kind == "val"), None)
    rate = next((r for row in reversed(run.rows) if (r := row.images_per_second)), None)
    rate = result.images_per_second if result else rate
    left = left_s(run.rows, config) if run.state in ("running", "stopped", SILENT) else None
    may_end_earlier = "< " if config.schedule.stop_at_top1_pct is not None else ""
    devices, device = _devices(run)
    # Numbers in names count as numbers: seed 2 comes before seed 10.
    name = [int(p) if i % 2 else p for i, p in enumerate(re.split(r"(\d+)", run.path.name))]
    values = (name, run.state, last and last.epoch, top1, rate, left, active)
    settings = {key: (as_text(value),) for key, value in flat(config).items()}
    return Line(
        run.path, dict(zip(SORTS, values, strict=True)),
        {"state": (run.state,), "device": device} | settings,
        [
            run.state, _progress(config, last),
            "" if top1 is None else f"{top1:.2f}",
            "" if rate is None else f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}",
            "" if left is None else f"{may_end_earlier}{duration(left)}",
            config.model.name, devices,
            "" if active is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(active)),
        ],
    )  # fmt: skip


def _progress(config: Config, last: Row | None) -> str:
    if config.run.mode == "eval":
        return ""
    planned, max_steps = float(config.schedule.epochs), config.schedule.max_steps
    if max_steps is not None and last is not None and last.step:
        planned = min(planned, max_steps * last.epoch / last.step)
    digits = 0 if planned == round(planned) else 1
    return f"{last.epoch if last else 0:.1f}/{planned:.{digits}f}"


def _devices(run: LoadedRun) -> tuple[str, tuple[str, ...]]:
    """Return the devices as the table shows them, and all names of one of them."""
    about, result = environment(run.path), run.result
    device = about["device"] if isinstance(about.get("device"), dict) else {}
    kind = result.device if result else str(device.get("type") or "")
    ranks = result.world_size if result else about.get("world_size")
    if not kind:
        return "", ()
    name = str(device.get("name") or kind)
    # The name of a GPU says how fast it is; that of a CPU is long and says little.
    shown = kind if kind == "cpu" else name.removeprefix("NVIDIA ")
    return (f"{ranks} x {shown}" if ranks else shown), (kind, name, shown)


def _condition(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise BadInput(f"--only {text}: write KEY=VALUE, such as model=resnet50")
    known = ["state", "device", *SHORT, *(name for name, _ in fields())]
    if key not in known:
        raise BadInput(f"--only {text}: no such key{nearest(key, known)}")
    return SHORT.get(key, key), value


def _print(lines: Sequence[Line], markdown: bool) -> None:
    names = [line.path.name for line in lines]
    rows = [
        # If two runs have the same name, show their folders.
        [str(line.path) if names.count(line.path.name) > 1 else line.path.name, *line.cells]
        for line in lines
    ]
    if markdown:
        # With escapes where Markdown would read markup or the end of a column.
        markup = re.compile(r"[\\`*|<>\[\]]")
        rows = [[markup.sub(r"\\\g<0>", one_line(cell)) for cell in row] for row in rows]
        rule = ["--:" if i in NUMBERS else "---" for i in range(len(TITLES))]
        for row in (TITLES, rule, *rows):
            out.print(Text(f"| {' | '.join(row)} |"))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, title in enumerate(TITLES):
        table.add_column(title, no_wrap=True, justify="right" if i in NUMBERS else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    # Without a limit on the width, as a truncated name could not be used in a command.
    Console(width=10_000, soft_wrap=True, highlight=False).print(table)
