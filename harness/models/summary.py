"""Summarize a network: shapes, parameters and multiply-adds of its layers, without computing."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call

from harness import config
from harness.config import load
from harness.errors import BadInput
from harness.models import build
from harness.models.zoo import MODELS

DECAY = "decay"
NORM_AND_BIAS = "norm and bias"


@dataclass(frozen=True)
class Layer:
    """A layer, or several summed: module, output shape, parameters, multiply-adds per image."""

    name: str
    module: str
    output: tuple[int, ...]
    parameters: int
    decay: tuple[str, ...]
    macs: int


@dataclass(frozen=True)
class Total:
    """Parameters of a network, and multiply-adds for one image, in 10^9."""

    parameters: int
    gmacs: float


def layers(model: nn.Module, image_px: int) -> list[Layer]:
    """Return all layers that have parameters or change the shape, in the forward pass's order.

    The model may be on any device and stays unchanged: tensors on the meta device replace its own,
    so nothing is computed. Only convolutions and linear layers count multiply-adds.

    Raises:
        BadInput: `image_px` is not positive.
    """
    if image_px < 1:
        raise BadInput(f"data.image_px: {image_px} px is no size of an image")
    rows: list[Layer] = []
    hooks = [
        module.register_forward_hook(partial(_record, rows, name))
        for name, module in model.named_modules()
    ]
    tensors = [*model.named_parameters(), *model.named_buffers()]
    # Two images, as BN in train mode refuses to take the variance of a single value.
    images = torch.empty(2, 3, image_px, image_px, device="meta")
    try:
        with torch.no_grad():
            functional_call(model, {name: tensor.to("meta") for name, tensor in tensors}, images)
    finally:
        for hook in hooks:
            hook.remove()
    return rows


def _record(
    rows: list[Layer], name: str, module: nn.Module, inputs: tuple[Tensor], output: Tensor
) -> None:
    """Append the layer that has just run; a container only if it changes the shape by itself."""
    shape = output.shape[1:]
    if list(module.children()):
        if shape != rows[-1].output:
            rows.append(Layer(name, _kind(module), tuple(shape), 0, (), 0))
        return
    parameters = list(module.parameters())
    if not parameters and output.shape == inputs[0].shape:
        return
    decay = tuple(dict.fromkeys(map(decay_group, parameters)))  # each once
    count = sum(parameter.numel() for parameter in parameters)
    # Counted as torchvision's `_ops`: without bias and BN.
    kernel = module.weight[0].numel() if isinstance(module, nn.Conv2d | nn.Linear) else 0
    rows.append(Layer(name, _kind(module), tuple(shape), count, decay, kernel * shape.numel()))


def decay_group(parameter: Tensor) -> str:
    """Return a parameter's weight-decay group: matrices and kernels, or norm and bias."""
    return DECAY if parameter.ndim >= 2 else NORM_AND_BIAS


def _kind(module: nn.Module) -> str:
    kind = type(module).__name__
    if isinstance(module, nn.Conv2d):
        return f"{kind} {_by(module.kernel_size)}/{module.stride[0]}"
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        return f"{kind} {module.kernel_size}x{module.kernel_size}/{module.stride}"
    kinds = {type(part).__name__ for part in module.children()}
    if isinstance(module, nn.Sequential) and len(kinds) == 1:
        return f"{len(module)} {kinds.pop()}"
    return kind


def _by(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes))


def total(rows: Sequence[Layer]) -> Total:
    """Return the sums over all layers."""
    return Total(sum(row.parameters for row in rows), sum(row.macs for row in rows) / 1e9)


def stages(model: nn.Module, rows: Sequence[Layer]) -> list[Layer]:
    """Sum `layers(model, ...)` to one row per stage, that is, per child of the model.

    A Sequential of different modules, such as DenseNet's `features`, has a row per child.
    """
    summed = []
    for name, child in _parts(model):
        own = [row for row in rows if f"{row.name}.".startswith(f"{name}.")]
        if own:
            decay = tuple(dict.fromkeys(group for row in own for group in row.decay))
            parameters = sum(row.parameters for row in own)
            macs = sum(row.macs for row in own)
            summed.append(Layer(name, _kind(child), own[-1].output, parameters, decay, macs))
    return summed


def _parts(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield children by name; a Sequential of different modules is replaced by its children."""
    for name, child in model.named_children():
        kinds = {type(part) for part in child.children()}
        if type(child) is nn.Sequential and len(kinds) > 1:
            yield from _parts(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def print_model(
    model: config.Model, image_px: int, classes: int, each_layer: bool, console: Console
) -> None:
    """Print a network as a table: a line per stage or per layer, the totals last.

    Raises:
        BadInput: the model's settings do not fit.
    """
    with torch.device("meta"):
        network = build(model, classes)
    rows = layers(network, image_px)
    sums = total(rows)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_footer=True)
    table.title = f"{model.name}: one image of {image_px} x {image_px} px, {classes} classes"
    table.title_justify = "left"
    table.add_column("name", "total", no_wrap=True)
    table.add_column("module", overflow="fold")
    table.add_column("output", no_wrap=True)
    table.add_column("parameters", f"{sums.parameters:,}", justify="right", no_wrap=True)
    table.add_column("decay group", no_wrap=True)
    table.add_column("GMACs", f"{sums.gmacs:.4f}", justify="right", no_wrap=True)
    for row in rows if each_layer else stages(network, rows):
        table.add_row(
            row.name,
            row.module,
            _by(row.output),
            f"{row.parameters:,}" if row.parameters else "",
            "both" if len(row.decay) > 1 else "".join(row.decay),
            f"{row.macs / 1e9:.4f}" if row.macs else "",
        )
    console.print(table)


def named(name: str) -> config.Model:
    """Return a model's default settings; raise BadInput, with the nearest name, if unknown."""
    if name not in MODELS:
        hint = load.nearest(name, list(MODELS), f"; known: {', '.join(MODELS)}")
        raise BadInput(f"model.name: no model {name!r}{hint}")
    return config.Model(name=name)
