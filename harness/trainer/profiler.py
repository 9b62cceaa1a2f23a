"""Profile: some steps of a run under torch's profiler: a trace to look at, and where time goes."""

from collections import defaultdict
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from torch import profiler

from harness.monitor.clock import PHASE_PREFIX
from harness.system.console import out, right_table

TRACE, KERNELS = "trace.json.gz", "kernels.txt"
_COSTLIEST = 8


class Profile:
    """Profiles steps first, first + 1, ... last - 1, counted from 0, on one rank.

    The folder is made when there is something to write.
    """

    def __init__(self, first: int, last: int, folder: Path, *, on_gpu: bool = False) -> None:
        self.first, self.last, self.folder = first, last, folder
        self._on_gpu = on_gpu
        self._running: profiler.profile | None = None

    def before(self, step: int) -> bool:
        """Begin or end where that is due; whether time has gone by that belongs to no step."""
        if self._running is None and self.first <= step < self.last:
            kinds = profiler.ProfilerActivity
            on = [kinds.CPU, kinds.CUDA] if self._on_gpu else [kinds.CPU]
            self._running = profiler.profile(activities=on)
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
        (self.folder / KERNELS).write_text(_tables(running.events() or [], on_gpu=self._on_gpu))
        out.print(
            f"profile of steps {self.first} to {self.last - 1}: {self.folder / KERNELS}; open "
            f"{TRACE} beside it in ui.perfetto.dev"
        )


def _tables(events: list[Any], *, on_gpu: bool) -> str:
    """The costliest kernels of each phase, by the time that they took themselves."""
    phases = sorted(
        (event.time_range.start, event.time_range.end, event.name.removeprefix(PHASE_PREFIX))
        for event in events
        if event.name.startswith(PHASE_PREFIX)
    )
    calls_us: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for event in events:
        on_cpu = event.device_type == torch.autograd.DeviceType.CPU
        if event.name.startswith(PHASE_PREFIX) or not on_cpu:
            continue  # a kernel is reported with the operator that launched it
        took_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if took_us > 0:
            at = event.time_range.start
            # By time, since a backward pass may run in another thread.
            phase = next((name for start, end, name in phases if start <= at <= end), "between")
            calls_us[phase][event.name].append(took_us)
    own_us = {
        phase: {kernel: sum(calls) for kernel, calls in kernels.items()}
        for phase, kernels in calls_us.items()
    }
    all_us = sum(sum(kernels.values()) for kernels in own_us.values()) or 1.0
    console = Console(record=True, width=100, file=StringIO(), highlight=False)
    for phase, kernels in sorted(own_us.items(), key=lambda item: -sum(item[1].values())):
        spent_us = sum(kernels.values())
        table = right_table("kernel", "ms", "calls", "%")
        table.title = f"{phase}: {spent_us / 1000:,.1f} ms, {100 * spent_us / all_us:.1f} % of all"
        table.box, table.expand = box.SIMPLE_HEAD, True
        for kernel, us in sorted(kernels.items(), key=lambda item: -item[1])[:_COSTLIEST]:
            table.add_row(
                kernel,
                f"{us / 1000:,.2f}",
                f"{len(calls_us[phase][kernel]):,}",
                f"{100 * us / all_us:.1f}",
            )
        console.print(table)
    return console.export_text()
