"""Decide whether torchrun should bind each rank to the cores of its GPU's NUMA node.

python launch/numa.py RANKS      print torchrun's option for so many ranks on this node, or nothing
"""

import os
import shutil
import sys
from collections import Counter
from pathlib import Path


def option(ranks: int, sys_: Path = Path("/sys")) -> str:
    """Return `--numa-binding=node` if it leaves no core idle and is fair to all ranks; else empty.

    That is so if each rank has a GPU of its own, and all NUMA nodes have equally many GPUs and
    equally many cores that this process may use. torchrun needs numactl for binding.
    """
    numa_nodes = (sys_ / "bus/pci/drivers/nvidia").glob("*/numa_node")
    gpus = Counter(int(file.read_text()) for file in numa_nodes)
    allowed = os.sched_getaffinity(0)
    cores = Counter(
        int(core.parent.name.removeprefix("node"))
        for core in (sys_ / "devices/system/node").glob("node[0-9]*/cpu[0-9]*")
        if int(core.name.removeprefix("cpu")) in allowed
    )
    fair = len(set(gpus.values())) == len(set(cores.values())) == 1
    if len(cores) < 2 or gpus.keys() != cores.keys() or not fair or gpus.total() != ranks:
        return ""
    return "--numa-binding=node" if shutil.which("numactl") else ""


if __name__ == "__main__":
    print(option(int(sys.argv[1])))
