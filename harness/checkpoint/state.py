"""State: copy weights, optimizer and scaler from the device to the host, and restore them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from harness.distributed import World

State = dict[str, Any]


class Staging:
    """Host memory for one copy of the state, reused by every checkpoint.

    With a GPU it is pinned, so that copies are asynchronous; call `wait` before reading them.
    """

    def __init__(self) -> None:
        self._tensors: dict[str, torch.Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    def copy(self, value: Any, name: str = "") -> Any:
        """Return a deep copy whose tensors lie in this host memory, one buffer per name."""
        if isinstance(value, torch.Tensor):
            return self._tensor(value.detach(), name)
        if isinstance(value, dict):
            return {key: self.copy(item, f"{name}.{key}") for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.copy(item, f"{name}.{i}") for i, item in enumerate(value))
        return value

    def _tensor(self, value: torch.Tensor, name: str) -> torch.Tensor:
        buffer = self._tensors.get(name)
        if buffer is None or buffer.shape != value.shape:
            buffer = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
            self._tensors[name] = buffer
        buffer.copy_(value, non_blocking=True)
        if value.is_cuda:
            self._copied = self._copied or torch.cuda.Event()
            self._copied.record()
        return buffer

    def wait(self) -> None:
        """Wait until the copies are complete."""
        if self._copied is not None:
            self._copied.synchronize()


def capture(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    staging: Staging | None = None,
) -> State:
    """Return a copy of the weights, BN's running statistics, optimizer state and loss scale.

    It holds no state of the loader, as the stream is a pure function of the step, and no random
    state, as random numbers are derived from (seed, step, rank). BN's running statistics are this
    rank's own; checkpoints keep those of rank 0.
    """
    staging = staging or Staging()
    return {
        "model": staging.copy(net.state_dict(), "model"),
        "optimizer": staging.copy(optimizer.state_dict(), "optimizer"),
        "scaler": scaler.state_dict(),
    }


def restore(
    state: State | None, net: nn.Module, optimizer: torch.optim.Optimizer, world: World
) -> None:
    """Load what rank 0 has captured or read into weights, statistics and optimizer of every rank.

    A collective: only rank 0 reads the file, so that all get the same bits and other nodes need not
    see the folder. The optimizer keeps its own settings, such as fused; of its state every tensor
    and number is restored, whether the optimizer has it from the start or from its first step on.

    Args:
        state: what `capture` gave; None on the other ranks.
    """
    if state is not None:
        net.load_state_dict(state["model"])
    received = world.from_main(tree_map(_outline, state["optimizer"]["state"]) if state else None)
    values = state["optimizer"]["state"] if state else tree_map(_blank, received)
    own = optimizer.state_dict()
    optimizer.load_state_dict({**own, "state": values})
    restored = tree_leaves(optimizer.state_dict()["state"])
    tensors = [x for x in restored if isinstance(x, torch.Tensor) and x.ndim]
    world.broadcast_([*net.state_dict().values(), *tensors])


def _outline(value: Any) -> Any:
    """Return a tensor without its data; a number, or a tensor of one, as it is, on the host."""
    if isinstance(value, torch.Tensor):
        return value.to("meta") if value.ndim else value.cpu()
    return value


def _blank(value: Any) -> Any:
    meta = isinstance(value, torch.Tensor) and value.is_meta
    return torch.empty_like(value, device="cpu") if meta else value
