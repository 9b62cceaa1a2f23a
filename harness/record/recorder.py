"""Recorder: rows go to rows.jsonl first, which is the truth, then to the console and to W&B."""

from __future__ import annotations

import io
import os
from typing import Any, Protocol

from rich.progress import BarColumn, Progress, TaskID, TextColumn

from harness.console import duration, out
from harness.record.schema import Row


class Mirror(Protocol):
    """Where rows are shown besides the file: W&B."""

    def log(self, row: dict[str, Any]) -> None:
        """Take a row, without delay and without ever failing."""


class Recorder:
    """Writes the rows of rank 0: one bar on a terminal, one plain line per row elsewhere."""

    def __init__(self, path: os.PathLike[str], total_steps: int, mirror: Mirror | None) -> None:
        self._file: io.TextIOBase = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self._mirror = mirror
        self._total_steps = total_steps
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if out.is_terminal and total_steps:
            columns = (BarColumn(bar_width=24), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=out, transient=True)
            self._task = self._bar.add_task("warming up", total=total_steps)
            self._bar.start()

    def write(self, row: Row, *, left_s: float | None) -> None:
        """Record a row; `left_s` is the time left for the whole run."""
        self._file.write(row.model_dump_json(exclude_none=True) + "\n")
        self._file.flush()
        if self._mirror is not None:
            self._mirror.log(row.model_dump(exclude_none=True))
        line = _line(row, self._total_steps)
        left = "" if left_s is None else f"  {duration(left_s)} left"
        if self._bar is None or row.kind == "val":
            out.print(line + left)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=row.step, description=_short(row) + left)

    def close(self) -> None:
        """End the bar and the file."""
        if self._bar is not None:
            self._bar.stop()
        self._file.close()


def _line(row: Row, total_steps: int) -> str:
    at = f"epoch {row.epoch:6.2f}  step {row.step:,}/{total_steps:,}"
    if row.kind == "val":
        return (
            f"{at}  validation: top-1 {row.val_top1_pct:.2f} %  top-5 {row.val_top5_pct:.2f} %  "
            f"loss {row.val_loss:.4f}  ({row.val_images:,} images in {row.val_s:.1f} s)"
        )
    return (
        f"{at}  loss {row.loss:.4f}  top-1 {row.train_top1_pct:5.1f} %  lr {row.lr:.4g}  "
        f"{row.images_per_second:,.0f} images/s  step {row.step_ms_p50:.0f} ms  "
        f"data wait {row.data_wait_pct:.0f} %"
    )


def _short(row: Row) -> str:
    if row.kind == "val":
        return f"epoch {row.epoch:.1f}  val top-1 {row.val_top1_pct:.2f} %"
    return (
        f"epoch {row.epoch:.1f}  loss {row.loss:.3f}  {row.images_per_second:,.0f} images/s  "
        f"data wait {row.data_wait_pct:.0f} %"
    )
