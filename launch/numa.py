"""Decide whether torchrun should bind each rank to the cores of its GPU's NUMA node.

python launch/numa.py RANKS      print torchrun's option for so many ranks on this node, or nothing
"""

import os
import shutil
import sys
from collections import Counter
from pathlib import Path

SYS = Path("/sys")


def option(ranks: int, sys_: Path = SYS) -> str:
    """Return `--numa-binding=node` if it leaves no core idle and is fair to all ranks; else empty.

    That is so if each rank has a GPU of its own, and all NUMA nodes have equally many GPUs and
    equally many cores that this process may use. torchrun needs numactl for binding.
    """
    gpus = _gpus(sys_)
    cores = {node: count for node, count in _cores(sys_).items() if count}
    fair = len(set(gpus.values())) == len(set(cores.values())) == 1
    if len(cores) < 2 or gpus.keys() != cores.keys() or not fair or gpus.total() != ranks:
        return ""
    return "--numa-binding=node" if shutil.which("numactl") else ""


def _gpus(sys_: Path) -> Counter[int]:
    """Return the number of GPUs on each NUMA node."""
    files = (sys_ / "bus/pci/drivers/nvidia").glob("*/numa_node")
    return Counter(int(file.read_text()) for file in files)


def _cores(sys_: Path) -> dict[int, int]:
    """Return the number of cores of each NUMA node that this process may use; it may be 0."""
    allowed = os.sched_getaffinity(0)
    return {
        int(file.parent.name.removeprefix("node")): len(_cpu_list(file.read_text()) & allowed)
        for file in (sys_ / "devices/system/node").glob("node[0-9]*/cpulist")
    }


def _cpu_list(text: str) -> set[int]:
    """Parse the kernel's short form of a list of cores, `0-3,8`."""
    ends = [part.partition("-") for part in text.strip().split(",") if part]
    return {n for first, _, last in ends for n in range(int(first), int(last or first) + 1)}


if __name__ == "__main__":
    print(option(int(sys.argv[1])))
