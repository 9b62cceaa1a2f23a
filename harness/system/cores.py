"""Cores: how many of the node's CPU cores are one rank's, whoever started it, and however bound."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def of_rank(ranks: int = 1) -> int:
    """CPU cores for one of so many ranks on this node, at least one; each asks for itself."""
    return max(1, int(share(ranks)))


def share(ranks: int, environ: Mapping[str, str] = os.environ) -> float:
    """The same, not rounded: where the ranks are more than the cores, less than one.

    Those that this process is bound to: a task of `srun`, or a rank under `--numa-binding`, has
    cores of its own. At most an even part of what all ranks may use together: under a torchrun
    they share what torchrun has, and nowhere more than Slurm or the control group grants.
    """
    own = _affinity(0)
    together = [cpu_quota(), *_of_launcher(own, environ)]
    return min([own, *(all_ / ranks for all_ in together if all_ is not None)])


def _of_launcher(own: int, environ: Mapping[str, str]) -> list[float]:
    granted = environ.get("SLURM_CPUS_ON_NODE", "")
    of_slurm = [float(granted)] if granted.isdigit() else []
    if of_slurm and "TORCHELASTIC_RUN_ID" not in environ:
        return of_slurm  # the parent is Slurm's own daemon, which may be bound to other cores
    return [*of_slurm, max(own, _affinity(os.getppid()))]


def _affinity(process: int) -> int:
    """Cores that a process (0: this one) may run on; 0 if it is gone."""
    try:
        return len(os.sched_getaffinity(process))
    except OSError:
        return 0


def cpu_quota(
    member_of: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> float | None:
    """Cores that the control group (v2 or v1) grants in all; null for no limit."""
    try:
        lines = member_of.read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        tops = [root, root / "unified"] if not controllers else [root / "cpu", root / controllers]
        read = _quota_v1 if controllers else _quota_v2
        for top in tops:
            folder = top / path.lstrip("/")
            quotas += [read(each) for each in (folder, *folder.parents) if each.is_relative_to(top)]
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
