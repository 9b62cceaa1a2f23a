"""Recorder: rows go to rows.jsonl first, which is the truth, then to the console."""

import json
import os
import threading
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn

from harness.logging.schema import Row
from harness.system.console import duration, out


class Recorder:
    """Writes the rows of rank 0: one bar on a terminal, one plain line per row elsewhere.

    If the disk is full, rows wait in memory until there is room again. Rows after `keep_bytes`, the
    checkpoint that a run resumes from, are discarded, as those steps are trained again.
    """

    def __init__(self, path: Path, total_steps: int, keep_bytes: int = 0) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(self._file, min(keep_bytes, os.fstat(self._file).st_size))
        self._written = os.lseek(self._file, 0, os.SEEK_END)
        self._waiting = b""
        self._lock = threading.Lock()
        self.rows = path.read_bytes().count(b"\n")
        self._total_steps = total_steps
        columns = (BarColumn(bar_width=24), TextColumn("{task.description}"))
        hidden = not out.is_terminal or total_steps == 0
        self._bar = Progress(*columns, console=out, transient=True, disable=hidden)
        self._task = self._bar.add_task("warming up", total=total_steps)
        self._bar.start()

    @property
    def bytes(self) -> int:
        """Length of all rows so far, including those that wait for room."""
        return self._written + len(self._waiting)

    def write(self, row: Row, *, left_s: float | None) -> None:
        """Record a row; `left_s` is the time left for the whole run."""
        with self._lock:
            first_to_wait = not self._waiting
            self._waiting += f"{row.model_dump_json(exclude_none=True)}\n".encode()
            self.rows += 1
            try:
                self._flush()
            except OSError as error:
                if first_to_wait:
                    out.print(f"warning: rows.jsonl: {error.strerror}: rows wait in memory")
        line, short = _in_words(row, self._total_steps)
        left = "" if left_s is None else f"  {duration(left_s)} left"
        if self._bar.disable or row.kind != "train":
            out.print(line + left)
        self._bar.update(self._task, completed=row.step, description=short + left)

    def sync(self) -> None:
        """Write all rows to the disk; may be called from any thread.

        Raises:
            OSError: they cannot be written.
        """
        with self._lock:
            self._flush()
        os.fsync(self._file)

    def energy_j(self) -> float | None:
        """Return the joules of all log periods, of all ranks' GPUs; None if none was measured.

        Raises:
            OSError: rows cannot be written.
        """
        self.sync()
        total_j, images = None, 0
        for row in map(json.loads, self._path.read_text(encoding="utf-8").splitlines()):
            if per_joule := row.get("images_per_joule"):
                total_j = (total_j or 0.0) + (row["images_seen"] - images) / per_joule
            images = row["images_seen"]
        return total_j

    def close(self) -> None:
        """End the bar; the file stays open for a checkpoint that is still under way."""
        if not self._bar.disable:  # older versions of rich print an empty line
            self._bar.stop()

    def _flush(self) -> None:
        while self._waiting:
            # At a fixed place: a row that a full disk cut short is completed or overwritten.
            done = os.pwrite(self._file, self._waiting, self._written)
            self._written += done
            self._waiting = self._waiting[done:]


def _in_words(row: Row, total_steps: int) -> tuple[str, str]:
    """Return the row's line, and a shorter one for the bar."""
    if row.kind == "stop":
        long = short = "stopped"
    elif row.kind == "val":
        short = f"val top-1 {row.val_top1_pct:.2f} %"
        long = (
            f"validation: top-1 {row.val_top1_pct:.2f} %  top-5 {row.val_top5_pct:.2f} %  "
            f"loss {row.val_loss:.4f}  ({row.val_images:,} images in {row.val_s:.1f} s)"
        )
    else:
        rate = f"{row.images_per_second:,.0f} images/s"
        wait = f"data wait {row.data_wait_pct:.0f} %"
        short = f"loss {row.loss:.3f}  {rate}  {wait}"
        long = (
            f"loss {row.loss:.4f}  top-1 {row.train_top1_pct:5.1f} %  lr {row.lr:.4g}  {rate}  "
            f"step {row.step_ms_p50:.0f} ms  {wait}"
        )
    at = f"epoch {row.epoch:6.2f}  step {row.step:,}/{total_steps:,}"
    return "  ".join([at, long, *(row.events or [])]), f"epoch {row.epoch:.1f}  {short}"
