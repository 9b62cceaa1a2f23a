"""Profile: some steps of a run under torch's profiler: a trace to look at, and where time goes."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import profiler

from harness.monitor.clock import PHASE_PREFIX
from harness.system.console import out

TRACE, KERNELS = "trace.json.gz", "kernels.txt"
_COSTLIEST = 8
_OTHER = "between"
_WIDTH = 100


@dataclass(frozen=True)
class _Span:
    """When a phase went on, on the host, and what it is."""

    name: str
    start: float
    end: float


class Profile:
    """Profiles steps first, first + 1, ... last - 1, counted from 0, on one rank.

    Args:
        folder: for the trace and the table; made when there is something to write.
    """

    def __init__(self, first: int, last: int, folder: Path, *, on_gpu: bool = False) -> None:
        self.first, self.last, self.folder = first, last, folder
        self._on_gpu = on_gpu
        self._running: profiler.profile | None = None

    def before(self, step: int) -> bool:
        """Begin or end where that is due; whether time has gone by that belongs to no step."""
        if self._running is None and self.first <= step < self.last:
            kinds = [profiler.ProfilerActivity.CPU]
            kinds += [profiler.ProfilerActivity.CUDA] if self._on_gpu else []
            self._running = profiler.profile(activities=kinds)
            self._running.start()
            return True
        if self._running is not None and step >= self.last:
            self.close()
            return True
        return False

    def close(self) -> None:
        """Write what was seen, if anything was."""
        if self._running is None:
            return
        running, self._running = self._running, None
        if self._on_gpu:
            torch.cuda.synchronize()
        running.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        running.export_chrome_trace(str(self.folder / TRACE))
        text = _table(list(running.events() or []), on_gpu=self._on_gpu)
        (self.folder / KERNELS).write_text(text)
        out.print(
            f"profile of steps {self.first} to {self.last - 1}: {self.folder / KERNELS}; open "
            f"{TRACE} beside it in ui.perfetto.dev"
        )


def _table(events: list[Any], *, on_gpu: bool) -> str:
    """The costliest kernels of each phase, by the time that they took themselves."""
    spans = sorted(_spans(events), key=lambda span: span.start)
    own_us: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    calls: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for event in events:
        on_cpu = event.device_type == torch.autograd.DeviceType.CPU
        if event.name.startswith(PHASE_PREFIX) or not on_cpu:
            continue  # a kernel is reported with the operator that launched it
        took = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if took > 0:
            where = _phase_of(event.time_range.start, spans)
            own_us[where][event.name] += took
            calls[where][event.name] += 1
    total = sum(sum(kernels.values()) for kernels in own_us.values()) or 1.0
    console = Console(record=True, width=_WIDTH, file=StringIO(), highlight=False)
    by_cost = sorted(own_us, key=lambda name: -sum(own_us[name].values()))
    for name in by_cost:
        kernels, spent = own_us[name], sum(own_us[name].values())
        title = f"{name}: {spent / 1000:,.1f} ms, {100 * spent / total:.1f} % of all"
        table = Table("kernel", "ms", "calls", "%", title=title, box=box.SIMPLE_HEAD, expand=True)
        for column in table.columns[1:]:
            column.justify = "right"
        for kernel in sorted(kernels, key=lambda kernel: -kernels[kernel])[:_COSTLIEST]:
            table.add_row(
                kernel,
                f"{kernels[kernel] / 1000:,.2f}",
                f"{calls[name][kernel]:,}",
                f"{100 * kernels[kernel] / total:.1f}",
            )
        console.print(table)
    return console.export_text()


def _spans(events: Iterable[Any]) -> Iterable[_Span]:
    for event in events:
        if event.name.startswith(PHASE_PREFIX):
            at = event.time_range
            yield _Span(event.name.removeprefix(PHASE_PREFIX), at.start, at.end)


def _phase_of(moment: float, spans: list[_Span]) -> str:
    """By time, since a backward pass may run in another thread."""
    return next((span.name for span in spans if span.start <= moment <= span.end), _OTHER)
