"""Saver: copies a state to the host, then writes it in a thread while training goes on."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from harness import config as cfg
from harness.checkpoint import store
from harness.checkpoint.store import State
from harness.distributed import World


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


class Saver:
    """Writes one checkpoint at a time on rank 0, from host memory that is reused.

    Args:
        before: called in the thread before a checkpoint is published, to make durable what the
            checkpoint refers to; may raise OSError.
        after: called in the thread with the published state.
    """

    def __init__(
        self,
        folder: Path,
        config: cfg.Checkpoint,
        *,
        before: Callable[[], object],
        after: Callable[[State], object],
        say: Callable[[str], None],
    ) -> None:
        self.staging = Staging()
        self.last: Path | None = None  # the newest that this attempt published, or resumed from
        self._folder, self._config = folder, config
        self._before, self._after, self._say = before, after, say
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._last_at = time.monotonic()

    def due(self) -> bool:
        """Return whether `every_minutes` have passed; if so, a new period begins."""
        now, minutes = time.monotonic(), self._config.every_minutes
        if not minutes or now - self._last_at < 60 * minutes:
            return False
        self._last_at = now
        return True

    @property
    def busy(self) -> bool:
        """Whether the previous checkpoint is still being written from `staging`."""
        return self._pending is not None and not self._pending.done()

    def save(self, state: State, about: dict[str, Any]) -> None:
        """Start to write a state that lies in `staging`; return at once."""
        assert not self.busy, "the memory of the previous checkpoint is still in use"
        self._last_at = time.monotonic()
        self._pending = self._thread.submit(self._write, state, about)

    def wait(self) -> None:
        """Wait until nothing is being written; raise what went wrong."""
        if self._pending is not None:
            self._pending.result()

    def last_before(self, step: int) -> Path | None:
        """Return the newest checkpoint before `step`, as the store does; later ones move aside."""
        self.wait()
        self.last = store.last_before(self._folder, step)
        return self.last

    def _write(self, state: State, about: dict[str, Any]) -> None:
        self.staging.wait()
        tensors = [state["losses"], *state["model"].values()]
        # numpy, since torch would start a second pool of threads that competes with the training.
        if not all(np.isfinite(t.numpy()).all() for t in tensors if t.is_floating_point()):
            self._say(f"step {about['step']}: not saved, as losses or weights are not finite")
            return
        try:
            self._before()
            self.last = store.publish(self._folder, state, about)
            store.prune(self._folder, self._config.keep, self._config.keep_every_epochs)
        except OSError as error:
            self._say(
                f"warning: step {about['step']}: the checkpoint could not be written "
                f"({error.strerror}); training goes on, the last good one is {self.last or 'none'}"
            )
        else:
            self._after(state)


def capture(
    net: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, staging: Staging
) -> State:
    """Return a copy of the weights, BN's running statistics, optimizer state and loss scale.

    It holds no state of the loader, as the stream is a pure function of the step, and no random
    state, as random numbers are derived from (seed, step, rank). BN's running statistics are this
    rank's own; checkpoints keep those of rank 0.
    """
    return {
        "model": staging.copy(net.state_dict(), "model"),
        "optimizer": staging.copy(optimizer.state_dict(), "optimizer"),
        "scaler": scaler.state_dict(),
    }


def restore(
    state: State | None, net: nn.Module, optimizer: torch.optim.Optimizer, world: World
) -> None:
    """Load the `state` that rank 0 alone has into weights, statistics and optimizer of every rank.

    A collective: only rank 0 reads the file, so that all get the same bits and other nodes need not
    see the folder. The optimizer keeps its own settings, such as fused; of its state every tensor
    and number is restored, whether the optimizer has it from the start or from its first step on.
    """
    if state is not None:
        net.load_state_dict(state["model"])
    received = world.from_main(tree_map(_outline, state["optimizer"]["state"]) if state else None)
    values = state["optimizer"]["state"] if state else tree_map(_blank, received)
    optimizer.load_state_dict(optimizer.state_dict() | {"state": values})
    restored = tree_leaves(optimizer.state_dict()["state"])
    tensors = [x for x in restored if isinstance(x, torch.Tensor) and x.ndim]
    world.broadcast_([*net.state_dict().values(), *tensors])


def _outline(value: Any) -> Any:
    """Leave out a tensor's data; a number, or a tensor of one, stays, on the host."""
    if isinstance(value, torch.Tensor):
        return value.to("meta") if value.ndim else value.cpu()
    return value


def _blank(value: Any) -> Any:
    meta = isinstance(value, torch.Tensor) and value.is_meta
    return torch.empty_like(value, device="cpu") if meta else value
