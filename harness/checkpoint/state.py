"""State: what a training consists of besides its stream, copied off the device and put back."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

State = dict[str, Any]


class Staging:
    """Host memory for one copy of the state, used again by each checkpoint.

    On a GPU it is pinned, so that the copies only take their turn on the device; `wait` then tells
    when they are there.
    """

    def __init__(self) -> None:
        self._tensors: dict[str, torch.Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    def copy(self, value: Any, name: str = "") -> Any:
        """A deep copy whose tensors lie in host memory, each under its own name."""
        if isinstance(value, torch.Tensor):
            return self._tensor(value.detach(), name)
        if isinstance(value, dict):
            return {key: self.copy(item, f"{name}.{key}") for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.copy(item, f"{name}.{i}") for i, item in enumerate(value))
        return value

    def _tensor(self, value: torch.Tensor, name: str) -> torch.Tensor:
        there = self._tensors.get(name)
        if there is None or there.shape != value.shape:
            there = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
            self._tensors[name] = there
        there.copy_(value, non_blocking=True)
        if value.is_cuda:
            self._copied = self._copied or torch.cuda.Event()
            self._copied.record()
        return there

    def wait(self) -> None:
        """Return once the copies are complete."""
        if self._copied is not None:
            self._copied.synchronize()


def capture(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    staging: Staging | None = None,
) -> State:
    """A copy of weights, BN's running statistics, momentum and the scaler's factor.

    Nothing of the loader is in it: the stream is a pure function of the step. Random state neither:
    what is random is derived from (seed, step, rank). BN's running statistics are this rank's own;
    rank 0's are the ones to keep.
    """
    staging = staging or Staging()
    return {
        "model": staging.copy(net.state_dict(), "model"),
        "optimizer": staging.copy(optimizer.state_dict(), "optimizer"),
        "scaler": scaler.state_dict(),
    }


def restore(state: State, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put captured weights, statistics and momentum back, in place.

    How the optimizer steps, fused or not, stays its own: only rank 0 reads a checkpoint.
    """
    net.load_state_dict(state["model"])
    own = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({**state["optimizer"], "param_groups": own})
