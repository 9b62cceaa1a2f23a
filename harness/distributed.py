"""This process's rank, device and process group. The only file that opens a process group.

Identity comes from torchrun's environment names and nothing else; launchers translate into those.
"""

import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from harness.errors import MOST_LETTERS, BadInput, BadRank, RunFailed, one_line
from harness.system.process import rank_cores

_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
_SIZES = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""In which srun and the kinds of mpirun say how many ranks they have started."""
_START = "start one torchrun per node, which sets these variables"


@dataclass(frozen=True)
class World:
    """This process among all of the run: `rank` selects its data, `local_rank` its device."""

    rank: int
    local_rank: int
    size: int
    local_size: int
    device: torch.device
    backend: str = "gloo"  # of the process group: or `nccl`
    shares_gpu: bool = False  # whether several ranks of this node compute on one GPU

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the record."""
        return self.rank == 0

    @property
    def on_gpu(self) -> bool:
        """Whether this process computes on a CUDA device."""
        return self.device.type == "cuda"

    def cores(self) -> int:
        """Return the number of CPU cores for this process, one of the node's ranks."""
        return rank_cores(self.local_size)

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all ranks, in place."""
        dist.all_reduce(tensor)
        return tensor

    def broadcast_(self, tensors: list[torch.Tensor]) -> None:
        """Copy rank 0's tensors to all ranks, in place."""
        for tensor in tensors:
            dist.broadcast(tensor, src=0)

    def gather_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return all ranks' tensors [n] as [size, n], in the order of ranks, on every rank."""
        everything = tensor.new_empty(self.size * len(tensor))
        # The new name came with torch 2.14.
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        gather(everything, tensor)
        return everything.view(self.size, -1)

    def from_main(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """Return all ranks' values, in the order of ranks, on every rank."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


def from_environment(
    device: str, environ: Mapping[str, str] = os.environ, backend: str = "auto"
) -> World:
    """Read rank and size from torchrun's environment variables; without them, one process.

    The device and the backend are as in the config's section `engine`.

    Raises:
        BadInput: as `identity`; no GPU, or too few.
    """
    rank, local_rank, size, local_size = identity(environ)
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise BadInput("engine.device: cuda was asked for, but torch sees no GPU here")
    gpus = torch.cuda.device_count() if has_gpu and device != "cpu" else 0
    if backend == "auto":
        backend = "nccl" if gpus else "gloo"
    if backend == "nccl":
        _one_gpu_each(local_size, gpus)
    where = torch.device("cuda", local_rank % gpus) if gpus else torch.device("cpu")
    return World(rank, local_rank, size, local_size, where, backend, 0 < gpus < local_size)


def identity(environ: Mapping[str, str]) -> tuple[int, int, int, int]:
    """Return rank and local rank, and how many ranks there are in all and on this node.

    Raises:
        BadInput: torchrun's variables are incomplete, or another launcher has started several ranks
            without them.
        BadRank: they cannot be.
    """
    given = [name for name in _NAMES if name in environ]
    if not given:
        for name in _SIZES:
            if environ.get(name, "1") not in ("", "1"):
                raise BadInput(f"{name} is {environ[name]}, but RANK is not set: {_START}")
        return 0, 0, 1, 1
    several = environ.get("WORLD_SIZE") != "1"
    for name in (*_NAMES, "MASTER_PORT", "MASTER_ADDR") if several else _NAMES:
        if not (text := environ.get(name)):
            raise BadInput(f"{name} is not set while {given[0]} is: {_START}")
        if name != "MASTER_ADDR" and not (text.strip().isdecimal() and int(text) < 2**16):
            raise BadRank(f"{name}: expected a number below 65,536, got {text}; {_START}")
    rank, local_rank, size, local_size = (int(environ[name]) for name in _NAMES)
    if not (rank < size and local_rank < local_size <= size):
        given_as = ", ".join(f"{name} {environ[name]}" for name in _NAMES)
        raise BadRank(f"{given_as}: cannot be, as ranks count from 0 to below the size; {_START}")
    return rank, local_rank, size, local_size


def _one_gpu_each(ranks: int, gpus: int) -> None:
    """Refuse NCCL without a GPU per rank; on every rank, so that none waits for another."""
    if not gpus:
        raise BadInput("engine.backend: nccl needs GPUs; use gloo, or auto")
    if ranks > gpus:
        raise BadInput(
            f"engine.backend: nccl needs a GPU for each of the {ranks} ranks of a node, torch sees "
            f"{gpus}; lower --nproc-per-node, or under srun give --gpus-per-node in place of "
            "--gpus-per-task; to try several ranks on one GPU, set --engine.backend gloo"
        )


def set_timeout(timeout_s: float) -> None:
    """Set the time limit of the process group's collectives from now on."""
    # The public name came with torch 2.14.
    set_it = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
    set_it(timedelta(seconds=timeout_s))


@contextmanager
def process_group(world: World, timeout_s: float) -> Iterator[None]:
    """Open the process group; close it if the block ends without an error.

    After an error other ranks may be waiting in a collective, and closing would wait for them; the
    launcher ends them once this process has left.
    """
    if world.on_gpu:
        torch.cuda.set_device(world.device)
    store = _store(world, timeout_s)
    try:
        dist.init_process_group(
            backend=world.backend,
            rank=world.rank,
            world_size=world.size,
            store=store,
            timeout=timedelta(seconds=timeout_s),
            # Gloo works in host memory, whatever the device of the tensors.
            device_id=world.device if world.backend == "nccl" else None,
        )
    except RuntimeError as error:
        if not (found := re.search(r"Unable to find (interface|address) for.*", str(error))):
            raise
        do = "bring it up, or name another in GLOO_SOCKET_IFNAME"
        raise BadInput(f"gloo's network interface: {found[0]}; {do}") from None
    yield
    dist.destroy_process_group()


def _store(world: World, timeout_s: float) -> dist.Store:
    if world.size == 1:
        return dist.HashStore()  # type: ignore[no-any-return,unused-ignore]
    timeout = timedelta(seconds=timeout_s)
    try:
        store, _, _ = next(rendezvous("env://", world.rank, world.size, timeout=timeout))
        return own_part(store, world, timeout_s)
    except dist.DistError as error:
        where = f"MASTER_ADDR {os.environ['MASTER_ADDR']}, MASTER_PORT {os.environ['MASTER_PORT']}"
        if "EADDRINUSE" in str(error):
            raise BadInput(f"{where}: the port is taken; give another to all ranks") from None
        raise RunFailed(
            f"{where}: {one_line(error)[:MOST_LETTERS]}; all ranks must reach rank 0 there, and "
            "each have its own RANK"
        ) from error


def own_part(store: dist.Store, world: World, timeout_s: float) -> dist.Store:
    """Return a part of the store that belongs to this start of the ranks alone.

    torchrun keeps one store over all its restarts, in which a rank finds the addresses of ranks
    that are dead; its count of restarts is not the same on all nodes (pytorch issue 135712). So
    rank 0 gives the part a new name, and the others believe a name once its rank 0 answers them.

    Raises:
        RunFailed: no rank 0 has come.
    """
    if world.is_main:
        name = uuid.uuid4().hex
        store.set("harness", name)
        for rank in range(1, world.size):
            store.set(f"{name}/answer/{rank}", store.get(f"{name}/call/{rank}").decode())
        return dist.PrefixStore(name, store)
    mine, until = uuid.uuid4().hex, time.monotonic() + timeout_s
    while time.monotonic() < until:
        name = store.get("harness").decode()
        store.set(f"{name}/call/{world.rank}", mine)
        for _ in range(10):
            time.sleep(0.02)
            answer = f"{name}/answer/{world.rank}"
            if store.check([answer]) and store.get(answer).decode() == mine:
                return dist.PrefixStore(name, store)
    raise RunFailed(f"rank {world.rank}: rank 0 has not come within {timeout_s:g} s")
