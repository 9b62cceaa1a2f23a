"""Run a function in several gloo ranks, as torchrun would start them, and collect what they say."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp


def in_ranks(size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What `function(*args)` returns in each of `size` processes, in the order of ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = mp.get_context("spawn").SimpleQueue()
    mp.start_processes(
        _rank, (size, port, queue, function, args), nprocs=size, start_method="spawn"
    )
    found = dict(queue.get() for _ in range(size))
    return [found[rank] for rank in range(size)]


def _rank(
    rank: int, size: int, port: int, queue: Any, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    queue.put((rank, function(*args)))
    # Not the interpreter's own end, in which torch's threads now and then abort the process (seen
    # twice in fifty: "terminate called without an active exception"); all has been said by now.
    os._exit(0)
