"""Optimizers and their parameter groups."""

from collections.abc import Callable, Iterable

import torch

from harness import config as cfg


def sgd(
    parameters: Iterable[torch.nn.Parameter], optim: cfg.Optim, *, fused: bool = True
) -> torch.optim.SGD:
    """SGD with two parameter groups: tensors of one dimension are norms and biases.

    Fused, it is one kernel per step, with which fp16's scaler needs no host read. Otherwise torch
    chooses: tensor by tensor on a CPU, all tensors at once on a GPU. The last bits differ.
    """
    everything = list(parameters)
    decay = optim.weight_decay
    vector_decay = decay if optim.decay_norm_and_bias else 0.0
    groups = [
        {"params": [p for p in everything if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in everything if p.ndim <= 1], "weight_decay": vector_decay},
    ]
    optimizer = torch.optim.SGD(
        groups, lr=0.0, momentum=optim.momentum, nesterov=optim.nesterov, fused=fused
    )
    if optim.momentum:
        # Else torch makes the buffers in the first step without filling them, also in one that
        # fp16's scaler skips. Zeros give the same first step: 0.9 x 0 + g.
        for parameter in everything:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"sgd": sgd}
"""The optimizers that `optim.name` names: (parameters, section `optim`, fused=) -> optimizer.

All state that a first step reads is there from the start, so that ranks can receive rank 0's.
"""


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
