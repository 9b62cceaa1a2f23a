"""The thresholds of `harness doctor`: when a check turns yellow or red, each with its reason."""

from typing import Literal

BACKWARD_SHARE = 2 / 3  # of a step: the backward pass, which can hide the all-reduce
CORES_PER_GPU = 4  # MLPerf's ResNet-50 runs give DALI 6 to 8 threads per GPU; below 4 it starves
CORES_PER_CPU_RANK = 1  # ranks that share a core wait for each other
CLOCK_SKEW_S = 1.0  # with more, the times in several hosts' logs and records cannot be put in order

# Shared memory per rank for NCCL's buffers between processes of a node. Docker grants 64 MiB in
# all by default; without room NCCL fails with `unhandled system error`.
NCCL_SHM_MIB = 32
OTHER_OPEN_FILES = 256  # apart from images: libraries, sockets, logs

MEMORY_USED_GIB = 1.0  # an idle GPU holds less; more means that another process computes on it
POWER_CAP = 0.95  # share of the default limit below which clocks under load miss published ones
SLOW_GPU = 0.9  # share of the median GPU's speed below which it is slow: the slowest sets the pace

CHECKPOINT_S = 30.0  # Slurm and torchrun kill a process 30 s after the signal: a save must fit
SMALL_SET_S = 1.0  # a set that is read in less time delays nobody, and is in memory afterwards
CONSOLE_GIB = 0.01  # the log of a long run: a line of 150 bytes every few seconds for some days
# Free space for caches: the kernels and graphs of one network at two image sizes take some 100 MiB.
CACHE_GIB: dict[Literal["red", "yellow"], float] = {"red": 0.05, "yellow": 1.0}
# File systems on which many processes compiling into one cache are slow and race.
NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "fuse.ceph", "cifs", "smb3", "9p", "afs"}
)

# Sizes and time limits of the measurements, so that all of them take under a minute.
RUN_FOLDER_MIB, CACHE_MIB = 64, 16
WRITE_S, WRITE_DEADLINE_S = 2.0, 10.0
READ_FILES, READ_S, READ_DEADLINE_S = 2000, 3.0, 15.0
COMPUTE_S = 0.5
ALL_REDUCE_S = 0.5  # per bucket size
LOOKUP_S, CONNECT_S = 6.0, 3.0
PORT_S = 30.0  # rank 0 may still be importing
NVML_S = 15.0  # without persistence mode the driver first wakes each GPU
GROUP_S = 60.0
TOTAL_S = 120.0  # a healthy machine takes a tenth of this

# `doctor nodes`: how far, in percent, a rate may lie below the median of the other nodes. Shared
# disks vary; processors of one model do not.
OUTLIERS = {
    "matmul_tflops": 10.0,
    "read_images_per_second": 50.0,
    "run_folder_mb_per_s": 50.0,
    "temporary_folder_mb_per_s": 50.0,
    "all_reduce_gb_per_s": 20.0,
}
CPU_OUTLIER_PCT = 30.0  # the matrix product on a CPU, whose cores other processes use too
