"""Models: the networks of the zoo, built as a config describes them; torch is imported to build."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from harness.errors import BadInput
from harness.models.zoo import MODELS

if TYPE_CHECKING:
    from torch import nn

    from harness import config


def build(model: config.Model, classes: int) -> nn.Module:
    """Return the network that the config describes, with random weights from torch's generator.

    It maps float images (N, 3, H, W) to logits (N, classes). `model.weights` is not read here.

    Raises:
        BadInput: there are no classes, or the settings do not fit this network.
    """
    from harness.config.rules import network_rules, refuse

    spec = MODELS[model.name]
    if classes < 1:
        raise BadInput(f"model.name: {model.name} needs at least 1 class, not {classes}")
    refuse(network_rules(model))
    settings = {key: getattr(model, key) for key in (*spec.settings, "fc_init_std")}
    settings = {key: value for key, value in settings.items() if value != "auto"}
    make = getattr(import_module(f"harness.models.{spec.family}"), spec.family)
    network: nn.Module = make(classes=classes, **spec.sizes | settings)
    if model.bn_images is not None:
        from harness.models.ghost_batchnorm import use_groups

        use_groups(network, model.bn_images)
    return network


def criterion(label_smoothing: float = 0.0) -> nn.CrossEntropyLoss:
    """Return the loss: from float32 logits (N, classes) and labels (N) to its mean over images."""
    from torch import nn

    return nn.CrossEntropyLoss(label_smoothing=label_smoothing)
