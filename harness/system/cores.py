"""How many of the node's CPU cores one rank may use, under torchrun, Slurm and control groups."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def of_rank(ranks: int = 1) -> int:
    """Return the CPU cores of this process when `ranks` share the node; at least one."""
    return max(1, int(share(ranks)))


def share(ranks: int, environ: Mapping[str, str] = os.environ) -> float:
    """Return the same, not rounded: less than one if there are more ranks than cores.

    It is the number of cores that this process is bound to (by `srun`, or `--numa-binding`), but at
    most an even share of what all ranks may use together: the cores of their torchrun, and what
    Slurm and the control group grant.
    """
    own = _affinity(0)
    limits = [cpu_quota(), *_launcher_limits(own, environ)]
    return min([own, *(limit / ranks for limit in limits if limit is not None)])


def _launcher_limits(own: int, environ: Mapping[str, str]) -> list[float]:
    granted = environ.get("SLURM_CPUS_ON_NODE", "")
    slurm = [float(granted)] if granted.isdigit() else []
    if slurm and "TORCHELASTIC_RUN_ID" not in environ:
        return slurm  # the parent is Slurm's daemon, which may be bound to other cores
    return [*slurm, max(own, _affinity(os.getppid()))]


def _affinity(process: int) -> int:
    """Return the number of cores that a process (0: this one) may run on; 0 if it has ended."""
    try:
        return len(os.sched_getaffinity(process))
    except OSError:
        return 0


def cpu_quota(
    member_of: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> float | None:
    """Return the cores that the control group (v2 or v1) grants in total; None for no limit."""
    try:
        lines = member_of.read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        tops = [root, root / "unified"] if not controllers else [root / "cpu", root / controllers]
        read = _quota_v1 if controllers else _quota_v2
        for top in tops:
            folder = top / group.lstrip("/")
            quotas += [read(path) for path in (folder, *folder.parents) if path.is_relative_to(top)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return quota / int((folder / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    except (OSError, ValueError):
        return None
