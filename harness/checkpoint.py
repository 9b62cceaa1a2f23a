"""Checkpoint: what a training consists of besides its stream, taken out and put back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn


def capture(
    net: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, step: int
) -> dict[str, Any]:
    """A copy of the training's state after `step` optimiser steps.

    Nothing of the loader is in it: the stream is a pure function of the step. BN's running
    statistics are this rank's own; rank 0's are the ones to keep.
    """
    return {
        "model": _copied(net.state_dict()),
        "optimizer": _copied(optimizer.state_dict()),
        "scaler": scaler.state_dict(),
        "step": step,
    }


def restore(
    state: dict[str, Any],
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> int:
    """Put a captured state back, in place; returns the steps it had done."""
    net.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    return int(state["step"])


def save(value: dict[str, Any], path: Path) -> None:
    """Write a file that is whole or not there."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        torch.save(value, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _copied(value: Any) -> Any:
    """A deep copy whose tensors share no memory with the original."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value
