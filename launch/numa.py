"""Whether torchrun should bind each rank to the cores beside its GPU.

python launch/numa.py RANKS      torchrun's option for so many ranks on this node, or nothing
"""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from pathlib import Path

SYS = Path("/sys")


def option(ranks: int, sys_: Path = SYS) -> str:
    """`--numa-binding=node` where it leaves no core idle and every rank as many; else empty.

    That is: a GPU of the node for each rank, on every NUMA node as many of them, and as many cores
    that this process may use. torchrun binds with numactl, and fails without it.
    """
    gpus = _gpus(sys_)
    cores = {node: count for node, count in _cores(sys_).items() if count}
    fair = len(set(gpus.values())) == len(set(cores.values())) == 1
    if len(cores) < 2 or gpus.keys() != cores.keys() or not fair or gpus.total() != ranks:
        return ""
    return "--numa-binding=node" if shutil.which("numactl") else ""


def _gpus(sys_: Path) -> Counter[int]:
    """GPUs on each NUMA node."""
    files = (sys_ / "bus/pci/drivers/nvidia").glob("*/numa_node")
    return Counter(int(file.read_text()) for file in files)


def _cores(sys_: Path) -> dict[int, int]:
    """Cores of each NUMA node that this process may use; some nodes are memory alone."""
    allowed = os.sched_getaffinity(0)
    return {
        int(file.parent.name.removeprefix("node")): len(_listed(file.read_text()) & allowed)
        for file in (sys_ / "devices/system/node").glob("node[0-9]*/cpulist")
    }


def _listed(text: str) -> set[int]:
    """The kernel's short form, `0-3,8`, as numbers."""
    ends = [part.partition("-") for part in text.strip().split(",") if part]
    return {n for first, _, last in ends for n in range(int(first), int(last or first) + 1)}


if __name__ == "__main__":
    print(option(int(sys.argv[1])))
