"""Count the operations and bytes of a training step from its graph, without computing it."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from harness import config as cfg
from harness.models import build, criterion

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Op:
    """One operation of the graph, with its costs per image of the batch."""

    flops: float  # of matrix products and convolutions only, as usual; a multiply-add is two
    moved_bytes: float  # of all tensors that it reads and writes, each once


@dataclass(frozen=True)
class Costs:
    """A training step's operations, in the order in which they run."""

    forward: tuple[Op, ...]
    backward: tuple[Op, ...]
    optimizer: tuple[Op, ...]

    @property
    def step(self) -> tuple[Op, ...]:
        """All operations of a step."""
        return self.forward + self.backward + self.optimizer


def flops(ops: Iterable[Op]) -> float:
    """Return the floating-point operations per image."""
    return sum(op.flops for op in ops)


def moved_bytes(ops: Iterable[Op], *, fused: bool) -> float:
    """Return the bytes per image moved between memory and processor.

    If `fused`, matrix products and convolutions only, as if all else were fused into them: a lower
    bound for any compiler. Else each operation reads and writes its own tensors.
    """
    return sum(op.moved_bytes for op in ops if op.flops or not fused)


def roofline_s(ops: Iterable[Op], flops_per_s: float, bytes_per_s: float, *, fused: bool) -> float:
    """Return a lower bound of the seconds per image at these peaks (Williams et al. 2009).

    Operations run one after the other, each bound by computation or by memory; `fused` is as for
    `moved_bytes`.
    """
    counted = (op for op in ops if op.flops or not fused)
    return sum(max(op.flops / flops_per_s, op.moved_bytes / bytes_per_s) for op in counted)


def training_costs(
    model: cfg.Model, classes: int, *, image_px: int, images: int, precision: str, momentum: bool
) -> Costs:
    """Return the costs per image of a step over a local batch of `images`, by SGD.

    The graph is run on fake tensors. Normalizing the pixels is not included.
    """
    autocast = torch.autocast("cpu", dtype=_AUTOCAST.get(precision))
    with FakeTensorMode(), torch.random.fork_rng(devices=[]):
        net = build(model, classes).train()
        batch = torch.empty(images, 3, image_px, image_px)
        labels = torch.zeros(images, dtype=torch.int64)
        with _Count(images) as forward:
            with autocast if precision in _AUTOCAST else nullcontext():
                logits = net(batch)
            loss = criterion()(logits.float(), labels)
        with _Count(images) as backward:
            loss.backward()
        parameters = _size(list(net.parameters()))
    # SGD reads weights, gradients and momentum, and writes weights and momentum.
    update = Op(0, (5 if momentum else 3) * parameters / images)
    return Costs(tuple(forward.ops), tuple(backward.ops), (update,))


class _Count(TorchDispatchMode):
    """Records each operation that moves data."""

    def __init__(self, images: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._images = images
        self.ops: list[Op] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        out = func(*args, **named)
        if func.namespace == "aten" and not _moves_nothing(func):
            pairs = zip(func._schema.arguments, args, strict=False)
            written = [arg for spec, arg in pairs if spec.alias_info and spec.alias_info.is_write]
            inputs = {id(x) for x in tree_leaves(args)}  # one changed in place may be an output too
            made = [x for x in tree_leaves(out) if id(x) not in inputs]
            size = _size((args, named)) + _size(written) + _size(made)
            count = flop_registry.get(func._overloadpacket)
            ops = count(*args, **named, out_val=out) if count else 0
            self.ops.append(Op(ops / self._images, size / self._images))
        return out


def _size(tree: Any) -> int:
    leaves = tree_leaves(tree)
    return sum(x.numel() * x.element_size() for x in leaves if isinstance(x, torch.Tensor))


_ALLOCATE = {torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.empty_strided}


def _moves_nothing(func: Any) -> bool:
    """Return whether an operation makes a view of its argument or only allocates memory."""
    aliases = [value.alias_info for value in func._schema.returns]
    is_view = any(alias is not None and not alias.is_write for alias in aliases)
    return is_view or func._overloadpacket in _ALLOCATE
