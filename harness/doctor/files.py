"""Check shared memory, resource limits, and the disks that a run writes to and reads from."""

import math
import os
import resource
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.data.dataset import reader_of
from harness.data.index import cache_folder
from harness.data.prepare.sample import some_files
from harness.data.sets import demo_folder
from harness.doctor import limits
from harness.doctor.check import Check, Facts, PlannedRun, measured, span
from harness.errors import MORE_SHM
from harness.monitor import probes

GIB = 2**30
SHM = Path("/dev/shm")


def collect(run: PlannedRun) -> Facts:
    """Return this rank's limits and data read rate; local rank 0 adds the node's disks."""
    facts: Facts = {
        "console_gib": _console_gib(),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "memlock": resource.getrlimit(resource.RLIMIT_MEMLOCK)[1],
    }
    if run.world.local_rank == 0:
        infiniband = Path("/sys/class/infiniband")
        facts |= {
            "shm_free_gib": shutil.disk_usage(SHM).free / GIB if SHM.exists() else None,
            "infiniband": infiniband.is_dir() and any(infiniband.iterdir()),
            "run_folder": _disk(lambda: Path(run.config.run.root), limits.RUN_FOLDER_MIB),
            "cache_folder": _disk(cache_folder, limits.CACHE_MIB),
            "temporary_folder": _disk(  # torch.compile keeps its cache there
                lambda: Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or tempfile.gettempdir()),
                limits.CACHE_MIB,
            ),
        }
    return facts | {"data": _data(run)}


def judge(ranks: Sequence[Facts], run: PlannedRun) -> list[Check]:
    """Return the checks of one node from its ranks' facts, local rank 0 first."""
    first = ranks[0]
    return [
        _judge_shm(first, run),
        _judge_open_files(ranks, run),
        _judge_memlock(first, run),
        _judge_console(ranks),
        _judge_run_folder(first, run),
        _judge_cache("cache folder", first["cache_folder"], "set HARNESS_CACHE to another folder"),
        _judge_cache("temporary folder", first["temporary_folder"], "set TMPDIR to a local disk"),
        _judge_data(ranks, run),
    ]


def _console_gib() -> float:
    """Return the free space for what is printed; infinite if it goes to no file."""
    free = [os.fstatvfs(stream) for stream in (1, 2) if stat.S_ISREG(os.fstat(stream).st_mode)]
    return min((disk.f_bavail * disk.f_frsize / GIB for disk in free), default=math.inf)


def _disk(folder: Callable[[], Path], size_mib: int) -> Facts:
    """Return free space and write speed of a folder, or of its nearest parent that exists."""

    def measure() -> Facts:
        path = folder().absolute()
        existing = next(p for p in (path, *path.parents) if os.path.lexists(p))
        df = subprocess.run(["df", "--output=fstype", existing], capture_output=True, text=True)
        return {
            "path": str(path),
            "free_gib": shutil.disk_usage(existing).free / GIB,
            "write_mb_per_s": probes.write_speed(existing, size_mib, limit_s=limits.WRITE_S) / 1e6,
            "disk": (df.stdout.split() or ["unknown"])[-1],  # such as ext4 or nfs4
            "error": None,
        }

    return measured(limits.WRITE_DEADLINE_S, measure)


def _data(run: PlannedRun) -> Facts:
    """Return how fast this rank reads random files of the data set."""
    data = run.config.data
    name = data.train if run.config.run.mode == "train" else data.val
    if data.source == "synthetic":
        return {"skipped": "images are synthetic"}
    if name is None:
        return {"skipped": "no folder; give --data.train DIR"}

    def measure() -> Facts:
        root = demo_folder() / "train" if name == "demo" else Path(name)
        if name == "demo" and not root.is_dir():
            return {"skipped": "the demo set is drawn on first use"}
        files = some_files(root, limits.READ_FILES, seed=run.world.rank)
        if files is None:
            return {"skipped": f"{root}: shards whose index is built on first use"}
        extents = [files.extent(n) for n in range(len(files.size_bytes))]
        read = reader_of(files, data.read)
        # A single process that runs before the ranks reads for all of them.
        threads = run.loader_threads * run.local_ranks // run.world.local_size
        reading = probes.read_speed(read, extents, threads=threads, limit_s=limits.READ_S)
        return {
            "images_per_second": reading.files / reading.seconds,
            "mb_per_s": reading.size_bytes / reading.seconds / 1e6,
            "kb_per_image": reading.size_bytes / reading.files / 1e3,
            "cached_pct": reading.cached_pct,
            "full_read_s": reading.seconds if len(extents) < limits.READ_FILES else None,
            "path": str(root),
        }

    return measured(limits.READ_DEADLINE_S, measure, name)


def _judge_shm(facts: Facts, run: PlannedRun) -> Check:
    free, data = facts["shm_free_gib"], run.config.data
    if free is None:
        return Check("/dev/shm", "red", "does not exist", MORE_SHM)
    need_gib, users = 0.0, "DALI needs none of it"
    if data.source == "torchvision":
        # Each DataLoader worker makes so many batches ahead, in shared memory, and of both sets.
        images = data.prefetch_batches * (run.local_batch + run.config.eval.local_batch)
        need_gib = images * 3 * data.image_px**2 * run.loader_threads * run.local_ranks / GIB
        users = f"{data.prefetch_batches} batches of each set per worker"
    if run.world.on_gpu and run.ranks > 1:
        need_gib += limits.NCCL_SHM_MIB * run.local_ranks / 1024
        users += ", and NCCL"
    value = f"{free:,.2f} GiB free; {users}"
    if free < need_gib:
        return Check("/dev/shm", "red", f"{value}: {need_gib:,.2f} GiB", MORE_SHM)
    return Check("/dev/shm", "green", value)


def _judge_open_files(ranks: Sequence[Facts], run: PlannedRun) -> Check:
    data, limit = run.config.data, min(facts["open_files"] for facts in ranks)
    need = limits.OTHER_OPEN_FILES
    if data.source == "dali" and data.read == "mmap":
        # Each image that DALI may be working on is memory-mapped, which keeps its file open.
        batches = 2 * data.prefetch_batches + 2 + data.read_ahead_batches
        need += batches * (run.local_batch + run.config.eval.local_batch)
    value = f"{limit:,} allowed, up to {need:,} needed"
    if 0 <= limit < need:
        do = f"ulimit -Hn {2 * need} before the start; or --data.read pread"
        return Check("open files", "red", value, do)
    return Check("open files", "green", value)


def _judge_memlock(facts: Facts, run: PlannedRun) -> Check:
    limit = facts["memlock"]
    unlimited = limit == resource.RLIM_INFINITY
    value = "unlimited" if unlimited else f"{limit / 2**20:,.0f} MiB"
    if not facts["infiniband"]:
        return Check("locked memory", "green", f"{value}; no InfiniBand here needs it")
    if not unlimited and run.world.on_gpu:
        do = "ulimit -l unlimited (Slurm: PropagateResourceLimits, LimitMEMLOCK of slurmd)"
        return Check("locked memory", "yellow", f"{value}: too little for InfiniBand", do)
    return Check("locked memory", "green", value)


def _judge_console(ranks: Sequence[Facts]) -> Check:
    free = min(facts["console_gib"] for facts in ranks)
    value = "goes to no file" if free == math.inf else f"goes to a file: {free:,.2f} GiB free"
    if free < limits.CONSOLE_GIB:
        do = "make room, or send it elsewhere; training goes on, but what it prints is lost"
        return Check("console", "yellow", value, do)
    return Check("console", "green", value)


def _judge_run_folder(facts: Facts, run: PlannedRun) -> Check:
    name, disk, checkpoint = "run folder", facts["run_folder"], facts["checkpoint_mb"]
    if disk["error"]:
        value = f"{run.config.run.root}: {disk['error']}"
        return Check(name, "red", value, "set --run.root to a folder that can be written")
    save_s, kept = checkpoint / disk["write_mb_per_s"], run.config.checkpoint.keep + 1
    value = f"{_describe(disk)}: a checkpoint of {checkpoint:,.0f} MB in {save_s:,.1f} s"
    if disk["free_gib"] * GIB < kept * checkpoint * 1e6:
        return Check(name, "red", f"{value}; no room for {kept}", "make room, or set --run.root")
    if save_s > limits.CHECKPOINT_S:
        do = f"jobs are killed {limits.CHECKPOINT_S:.0f} s after a signal: use a faster --run.root"
        return Check(name, "yellow", value, do)
    return Check(name, "green", value)


def _judge_cache(name: str, disk: Facts, do: str) -> Check:
    if disk["error"]:
        return Check(name, "red", disk["error"], do)
    value = _describe(disk)
    for status, least_gib in limits.CACHE_GIB.items():
        if disk["free_gib"] < least_gib:
            return Check(name, status, value, f"make room, or {do}")
    if name == "temporary folder" and disk["disk"] in limits.NETWORK_FILE_SYSTEMS:
        do = "torch.compile's cache belongs on a local disk: set TMPDIR"
        return Check(name, "yellow", value, do)
    return Check(name, "green", value)


def _describe(disk: Facts) -> str:
    return (
        f"{disk['path']} ({disk['disk']}): {disk['free_gib']:,.1f} GiB free, "
        f"writes {disk['write_mb_per_s']:,.0f} MB/s"
    )


def _judge_data(ranks: Sequence[Facts], run: PlannedRun) -> Check:
    name, reads = "training data", [facts["data"] for facts in ranks]
    for facts, read in zip(ranks, reads, strict=True):
        if "error" in read:
            value = f"{read['error']}" + (f" (rank {facts['rank']})" if len(ranks) > 1 else "")
            return Check(name, "red", value, "mount it, or give another --data.train")
        if "skipped" in read:
            return Check(name, "not checked", read["skipped"])
    rate = sum(read["images_per_second"] for read in reads)
    need = sum(facts["images_per_second_bound"] for facts in ranks)
    cached = [read["cached_pct"] for read in reads if read["cached_pct"] is not None]
    # If the kernel has not dropped its cache of them, the rate is not that of the disk.
    origin = "cold" if cached and max(cached) < 10 else "from memory, at least in part"
    value = (
        f"{reads[0]['path']}: {rate:,.0f} images/s, {sum(r['mb_per_s'] for r in reads):,.0f} MB/s "
        f"{origin} ({span([read['kb_per_image'] for read in reads])} KB each)"
    )
    full_read_s = max(read["full_read_s"] or limits.READ_S for read in reads)
    if rate < need and full_read_s > limits.SMALL_SET_S:
        do = (
            f"training could use up to {need:,.0f} images/s: copy the data to a local disk, or "
            "expect the first epoch to wait"
        )
        return Check(name, "yellow", value, do)
    return Check(name, "green", value)
