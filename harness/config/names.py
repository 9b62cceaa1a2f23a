"""The networks by name, and which of them have what."""

from __future__ import annotations

from typing import Literal, get_args

# He et al. 2015: the networks for ImageNet and for CIFAR, and the ones without shortcuts.
ResNet = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
CifarResNet = Literal["resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet1202"]
Plain = Literal["plain18", "plain34"]
CifarPlain = Literal["plain20", "plain32", "plain44", "plain56"]
# Huang et al. 2017: for ImageNet by depth; for CIFAR by depth and growth rate.
DenseNet = Literal["densenet121", "densenet161", "densenet169", "densenet201", "densenet264"]
CifarDenseNet = Literal[
    "densenet_40_12", "densenet_100_12", "densenet_100_24",
    "densenet_bc_100_12", "densenet_bc_250_24", "densenet_bc_190_40",
]  # fmt: skip
ModelName = Literal[ResNet, CifarResNet, Plain, CifarPlain, DenseNet, CifarDenseNet]

CIFAR_MODELS = get_args(Literal[CifarResNet, CifarPlain, CifarDenseNet])
BOTTLENECK_MODELS = ("resnet50", "resnet101", "resnet152")
RESIDUAL_MODELS = get_args(Literal[ResNet, CifarResNet])
DENSE_MODELS = get_args(Literal[DenseNet, CifarDenseNet])
