"""Limits: from where on the doctor calls a thing yellow or red, each with its reason."""

from __future__ import annotations

BACKWARD_SHARE = 2 / 3
"""Of a step is backward, behind which the all-reduce hides."""

CORES_PER_GPU = 4
"""MLPerf's ResNet-50 runs give DALI 6 to 8 threads per GPU; below 4 cores a GPU starves."""

CORES_PER_CPU_RANK = 1
"""Ranks that share a core wait for each other."""

SHM_OF_NCCL_MIB = 32
"""Per rank: NCCL's buffers between processes of a node. Docker's default is 64 MiB in all; without
room NCCL ends with `unhandled system error`."""

SPARE_FILES = 256
"""Open files beside those of the images: libraries, sockets, logs."""

CHECKPOINT_S = 30.0
"""Slurm and torchrun kill what has not ended 30 s after the signal: a save must be done by then."""

CACHE_GIB = {"yellow": 1.0, "red": 0.05}
"""Free: kernels and graphs of one network and two image sizes take some 100 MiB."""

SMALL_SET_S = 1.0
"""A set that is read through in less keeps nobody waiting, and is in memory from then on."""

MEMORY_USED_GIB = 1.0
"""A GPU holds less while nobody computes on it: somebody does."""

POWER_CAP = 0.95
"""Of the default power limit; below it the clocks under load are lower than others publish."""

SLOW_GPU = 0.9
"""Of the median GPU of the job: the slowest sets the pace for all."""

CLOCK_SKEW_S = 1.0
"""Beyond it the times in logs and records of several hosts cannot be put in order."""

NETWORK_DISKS = frozenset(
    {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "fuse.ceph", "cifs", "smb3", "9p", "afs"}
)
"""File systems on which compiling into one cache from many processes is slow and races."""

# How much is tried, and for how long, so that all of it stays under a minute.
RUN_FOLDER_MIB, CACHE_MIB = 64, 16
WRITE_S, WRITE_DEADLINE_S = 2.0, 10.0
READ_FILES, READ_S, READ_DEADLINE_S = 2000, 3.0, 15.0
COMPUTE_S = 0.5
ALL_REDUCE_S = 0.5  # per size of bucket
NAME_S, CONNECT_S = 6.0, 3.0
PORT_S = 30.0  # rank 0 may be importing still
NVML_S = 15.0  # without persistence mode the driver first wakes each GPU
GROUP_S = 60.0
WHOLE_S = 120.0  # on a healthy machine it takes a tenth of this

OUTLIERS = {
    "matmul_tflops": 10.0,
    "read_images_per_second": 50.0,
    "run_folder_mb_per_s": 50.0,
    "temporary_folder_mb_per_s": 50.0,
    "all_reduce_gb_per_s": 20.0,
}
"""`doctor nodes`: how many percent below the median of the other nodes a rate may lie. Disks that
others use vary; processors of one model do not."""

CPU_OUTLIER_PCT = 30.0
"""The same for the matrix product on a CPU, whose cores are shared with whatever else runs."""
