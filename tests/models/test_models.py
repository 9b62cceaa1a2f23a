"""The networks: torchvision's keys, outputs and costs; the papers' options and first weights."""

from __future__ import annotations

import io
import math
import re
from functools import cache
from typing import Any

import pytest
import torch
import torchvision
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from harness import config
from harness.errors import BadInput
from harness.models import build
from harness.models.resnet import BasicBlock, Bottleneck, PadShortcut
from harness.models.summary import Layer, layers, named, print_model, stages, total
from harness.models.zoo import MODELS

IMAGENET = {
    # name: parameters, GMACs at 224 px, as torchvision publishes them
    "resnet18": (11_689_512, 1.814),
    "resnet34": (21_797_672, 3.664),
    "resnet50": (25_557_032, 4.089),
    "resnet101": (44_549_160, 7.801),
    "resnet152": (60_192_808, 11.514),
    "densenet121": (7_978_856, 2.834),
    "densenet161": (28_681_000, 7.728),
    "densenet169": (14_149_480, 3.360),
    "densenet201": (20_013_928, 4.291),
}
CIFAR = {
    # name: parameters in millions and to how many digits (He et al. 2015, table 6)
    "resnet20": (0.27, 2),
    "resnet32": (0.46, 2),
    "resnet44": (0.66, 2),
    "resnet56": (0.85, 2),
    "resnet110": (1.7, 1),
    "resnet1202": (19.4, 1),
    # Huang et al. 2017, table 2
    "densenet_40_12": (1.0, 1),
    "densenet_100_12": (7.0, 1),
    "densenet_100_24": (27.2, 1),
    "densenet_bc_100_12": (0.8, 1),
    "densenet_bc_250_24": (15.3, 1),
    "densenet_bc_190_40": (25.6, 1),
}
EXACT = {
    # of which no paper prints as many digits
    "plain18": (11_515_688, 1.795),
    "plain34": (21_623_848, 3.644),
    "densenet264": (33_337_704, 5.752),
    "plain20": (269_722, 0.041),
    "plain32": (464_154, 0.069),
    "plain44": (658_586, 0.097),
    "plain56": (853_018, 0.125),
    "densenet_40_12": (1_019_722, 0.265),
    "densenet_100_12": (6_979_642, 1.770),
    "densenet_100_24": (27_249_082, 6.889),
    "densenet_bc_100_12": (769_162, 0.288),
    "densenet_bc_250_24": (15_324_406, 5.419),
    "densenet_bc_190_40": (25_624_430, 9.302),
}
"""Parameters, and GMACs at 224 px, or 32."""


def network(name: str, classes: int = 1000, **settings: Any) -> nn.Module:
    return build(config.Model(name=name, **settings), classes)


def on_meta(name: str, classes: int = 1000, **settings: Any) -> nn.Module:
    """Shapes only: quick at any size."""
    with torch.device("meta"):
        return network(name, classes, **settings)


@cache
def layers_of(name: str) -> list[Layer]:
    """Of a network for 1,000 classes at 224 px, or 10 at 32 px."""
    made_for = MODELS[name]
    return layers(on_meta(name, made_for.classes), made_for.image_px)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def blocks(model: nn.Module) -> list[BasicBlock | Bottleneck]:
    return [module for module in model.modules() if isinstance(module, BasicBlock | Bottleneck)]


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """Our network and torchvision's with the same weights, none of them trivial."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        ours, theirs = network(name), torchvision.models.get_model(name)
    weights = {}
    for key, tensor in theirs.state_dict().items():
        if tensor.ndim >= 2:
            fan_in = tensor[0].numel()
            weights[key] = torch.randn(tensor.shape, generator=generator) * fan_in**-0.5
        elif tensor.is_floating_point():
            weights[key] = torch.rand(tensor.shape, generator=generator) * 0.5 + 0.5
        else:
            weights[key] = torch.tensor(0)
    for model in (ours, theirs):
        model.load_state_dict({k: v.clone() for k, v in weights.items()}, assign=True)
    return ours, theirs


def images(count: int, side_px: int) -> Tensor:
    return torch.randn(count, 3, side_px, side_px, generator=torch.Generator().manual_seed(1))


def test_every_name_of_the_config_has_a_model() -> None:
    assert set(MODELS) == {*IMAGENET, *CIFAR, *EXACT}
    cifar = {*CIFAR, "plain20", "plain32", "plain44", "plain56"}
    assert {name for name in MODELS if MODELS[name].cifar} == cifar


@pytest.mark.parametrize("name", IMAGENET)
def test_keys_and_shapes_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name).state_dict()
    ours = on_meta(name).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in theirs.items()
    }


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "densenet121", "densenet161"])
def test_same_weights_give_torchvisions_output_gradients_and_statistics(name: str) -> None:
    """Each kind of block and of stem; the others differ in keys and shapes alone."""
    ours, theirs = pair(name)
    x, labels = images(2, 64), torch.tensor([1, 999])
    with torch.inference_mode():
        expected = theirs.eval()(x)
        assert (ours.eval()(x) - expected).abs().max() < 1e-5
    assert expected.std() > 1e-3, "the comparison must not be one of zeros"
    for model in (ours, theirs):
        F.cross_entropy(model.train()(x), labels).backward()
    gradients = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[key].grad, rtol=1e-5, atol=1e-6)
    for key, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, theirs.get_buffer(key))


@pytest.mark.parametrize(("name", "expansion"), [("resnet18", 1), ("resnet34", 1), ("resnet50", 4)])
def test_shape_after_each_stage_at_224_px(name: str, expansion: int) -> None:
    model = on_meta(name)
    outputs = {stage.name: stage.output for stage in stages(model, layers(model, 224))}
    assert outputs == {
        "conv1": (64, 112, 112),
        "bn1": (64, 112, 112),
        "maxpool": (64, 56, 56),
        "layer1": (64 * expansion, 56, 56),
        "layer2": (128 * expansion, 28, 28),
        "layer3": (256 * expansion, 14, 14),
        "layer4": (512 * expansion, 7, 7),
        "avgpool": (512 * expansion, 1, 1),
        "flatten": (512 * expansion,),
        "fc": (1000,),
    }


def test_shape_after_each_stage_of_the_cifar_families_at_32_px() -> None:
    paper, wide = on_meta("resnet20", 10), on_meta("resnet18", 10, stem="cifar")
    outputs = [
        [stage.output for stage in stages(model, layers(model, 32)) if stage.name[:5] == "layer"]
        for model in (paper, wide)
    ]
    assert outputs[0] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert outputs[1] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]


@pytest.mark.parametrize("name", IMAGENET)
def test_parameters_and_macs_are_the_published_ones(name: str) -> None:
    sums = total(layers_of(name))
    assert (sums.parameters, round(sums.gmacs, 3)) == IMAGENET[name]


@pytest.mark.parametrize("name", CIFAR)
def test_parameters_are_the_papers(name: str) -> None:
    millions, digits = CIFAR[name]
    assert round(parameters(on_meta(name, 10)) / 1e6, digits) == millions


@pytest.mark.parametrize("name", EXACT)
def test_parameters_and_macs_do_not_change(name: str) -> None:
    sums = total(layers_of(name))
    assert (sums.parameters, round(sums.gmacs, 3)) == EXACT[name]


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"resnet1202"}))
def test_the_number_in_a_name_counts_the_layers(name: str) -> None:
    """Convolutions and the classifier; projections are not counted (He et al. 2015, 3.3)."""
    weighted = [
        layer
        for layer in layers_of(name)
        if "decay" in layer.decay and "downsample" not in layer.name
    ]
    # The blocks of Huang et al. 2017, table 1, make 265 of DenseNet-264.
    assert len(weighted) - (name == "densenet264") == int(re.findall(r"\d+", name)[0])


@pytest.mark.parametrize(("stride_in", "strides"), [("3x3", (1, 2)), ("1x1", (2, 1))])
def test_stride_in_moves_the_stride(stride_in: str, strides: tuple[int, int]) -> None:
    model = on_meta("resnet50", stride_in=stride_in)
    for stage in ("layer2", "layer3", "layer4"):
        first, *others = model.get_submodule(stage).children()
        assert (first.conv1.stride[0], first.conv2.stride[0]) == strides
        assert all(block.conv1.stride == block.conv2.stride == (1, 1) for block in others)
    assert all(block.conv2.stride == (1, 1) for block in model.get_submodule("layer1").children())


def test_stride_in_the_1x1_costs_less_and_has_the_same_parameters() -> None:
    v15, v1 = (total(layers(on_meta("resnet50", stride_in=at), 224)) for at in ("3x3", "1x1"))
    assert v1.parameters == v15.parameters
    # He et al. 2015, table 1: 3.8 x 10^9 for ResNet-50.
    assert (round(v15.gmacs, 1), round(v1.gmacs, 1)) == (4.1, 3.9)


def test_shortcut_options_differ_in_parameters() -> None:
    a, b, c = (on_meta("resnet34", shortcut=option) for option in "ABC")
    plain = sum(
        parameter.numel() for key, parameter in b.named_parameters() if "downsample" not in key
    )
    assert parameters(a) == plain
    # Projections of option B: 1x1 kernels and the BN's two vectors.
    projections = [(64, 128), (128, 256), (256, 512)]
    assert parameters(b) == plain + sum(i * o + 2 * o for i, o in projections)
    same = [(64, 3), (128, 3), (256, 5), (512, 2)]
    assert parameters(c) == parameters(b) + sum(n * (w * w + 2 * w) for w, n in same)


def test_where_each_option_has_what_shortcut() -> None:
    for option, kind, count in (
        ("A", PadShortcut, 3),
        ("B", nn.Sequential, 3),
        ("C", nn.Sequential, 8),
    ):
        shortcuts = [block.downsample for block in blocks(on_meta("resnet18", shortcut=option))]
        assert sum(isinstance(one, kind) for one in shortcuts) == count
        assert sum(isinstance(one, nn.Identity) for one in shortcuts) == 8 - count


def test_auto_shortcut_is_a_for_the_six_n_plus_two_networks_and_b_for_the_others() -> None:
    for name, option in (("resnet20", "A"), ("resnet18", "B"), ("resnet50", "B")):
        auto, named = on_meta(name), on_meta(name, shortcut=option)
        assert auto.state_dict().keys() == named.state_dict().keys()


def test_padding_shortcut_keeps_every_second_pixel_between_zeros() -> None:
    x = images(2, 5)
    y = PadShortcut(3, 8, stride=2)(x)
    assert y.shape == (2, 8, 3, 3)
    assert torch.equal(y[:, 2:5], x[:, :, ::2, ::2])
    assert not y[:, :2].any()
    assert not y[:, 5:].any()


def test_a_plain_network_is_its_resnet_without_the_way_around() -> None:
    plain, residual = on_meta("plain34"), on_meta("resnet34", shortcut="A")
    assert {k: v.shape for k, v in plain.state_dict().items()} == {
        k: v.shape for k, v in residual.state_dict().items()
    }
    block = network("plain20", 10).train().get_submodule("layer2.0")
    x = images(2, 8).repeat(1, 6, 1, 1)[:, :16]
    y = torch.relu(block.bn1(block.conv1(x)))
    assert torch.equal(block(x), torch.relu(block.bn2(block.conv2(y))))


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_channels_last_stays_channels_last(shortcut: str) -> None:
    model = network("resnet20", 10, shortcut=shortcut).to(memory_format=torch.channels_last)
    seen = []
    for block in blocks(model):
        for module in (block, block.downsample):
            module.register_forward_hook(
                lambda module, inputs, output: seen.append(
                    output.is_contiguous(memory_format=torch.channels_last)
                )
            )
    model(images(2, 32).to(memory_format=torch.channels_last))
    assert len(seen) == 18
    assert all(seen)


@pytest.mark.parametrize("name", ["resnet18", "resnet20", "resnet50"])
@pytest.mark.parametrize("zero_gamma", [True, False])
def test_zero_gamma_makes_every_block_its_shortcut(name: str, zero_gamma: bool) -> None:
    torch.manual_seed(0)
    for block in blocks(network(name, 10, zero_gamma=zero_gamma)):
        x = torch.rand(2, block.conv1.in_channels, 4, 4)
        with torch.no_grad():
            same = torch.equal(block(x), torch.relu(block.downsample(x)))
            if zero_gamma and isinstance(block.downsample, nn.Identity):
                assert torch.equal(block(x), x)
        assert same == zero_gamma


def test_convolutions_start_with_he_by_fan_out() -> None:
    torch.manual_seed(0)
    convolutions = [m for m in network("resnet18").modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 20
    for convolution in convolutions:
        weight = convolution.weight.detach()
        fan_out = weight.shape[0] * weight[0, 0].numel()
        assert weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
        assert abs(weight.mean().item()) < 0.1 * weight.std().item()


def test_fc_init_std() -> None:
    torch.manual_seed(0)
    goyal = network("resnet18", fc_init_std=0.01).get_submodule("fc")
    assert goyal.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert goyal.weight.abs().max() > 0.035, "a normal law has tails"
    assert not goyal.bias.any()
    default = network("resnet18").get_submodule("fc")
    assert default.weight.abs().max() <= 512**-0.5
    assert default.bias.any()


@pytest.mark.parametrize(("name", "settings"), [("resnet20", {}), ("resnet50", {"stem": "cifar"})])
def test_one_graph_without_breaks_and_logits_in_bf16_under_autocast(
    name: str, settings: dict[str, Any]
) -> None:
    model = network(name, 10, **settings).eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
    x = images(1, 32)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), model(x))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model(x).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "classes", "message"),
    [
        ({"name": "resnet20", "stem": "imagenet"}, 10, "model.stem: resnet20 is a CIFAR network"),
        ({"name": "resnet34", "stride_in": "1x1"}, 10, "model.stride_in: .* no 1x1 convolution"),
        ({"name": "resnet50"}, 0, "at least 1 class, not 0"),
        ({"name": "densenet121", "stem": "cifar"}, 10, "model.stem: densenet121 has its own; "),
        ({"name": "densenet121", "stride_in": "1x1"}, 10, "model.stride_in: densenet121 has no"),
        ({"name": "plain34", "shortcut": "B"}, 10, "model.shortcut: plain34 has no shortcuts; "),
        ({"name": "plain18", "zero_gamma": True}, 10, "model.zero_gamma: plain18 has no residual"),
        ({"name": "densenet121", "zero_gamma": True}, 9, "zero_gamma: densenet121 has no residual"),
        ({"name": "resnet50", "dropout": 0.2}, 10, "model.dropout: resnet50 has no dropout, "),
        ({"name": "resnet50", "memory_saving": True}, 10, "model.memory_saving: .* only DenseNets"),
    ],
)
def test_impossible_combinations(settings: dict[str, Any], classes: int, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        build(config.Model(**settings), classes)


def test_layers_leaves_the_model_as_it_was() -> None:
    model = network("resnet20", 10).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert total(layers(model, 32)).parameters == parameters(model)
    assert model.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
        assert value.device.type == "cpu"
    assert not any(module._forward_hooks for module in model.modules())


def test_layers_names_module_shape_group_and_macs() -> None:
    found = {layer.name: layer for layer in layers(on_meta("resnet50"), 224)}
    assert found["conv1"].module == "Conv2d 7x7/2"
    assert found["conv1"].decay == ("decay",)
    assert found["conv1"].macs == 64 * 112 * 112 * 3 * 7 * 7
    assert found["layer3.0.conv2"].module == "Conv2d 3x3/2"
    assert found["layer3.0.bn2"].decay == ("norm and bias",)
    assert found["layer3.0.bn2"].output == (256, 14, 14)
    assert found["layer3.0.bn2"].macs == 0
    assert found["fc"].decay == ("decay", "norm and bias")
    assert (found["fc"].parameters, found["fc"].macs) == (2_049_000, 2_048_000)
    assert "relu" not in found


def printed(model: config.Model, each_layer: bool, classes: int = 1000) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    print_model(model, 224, classes, each_layer, console)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_print_model_has_a_line_per_stage_and_the_totals_last() -> None:
    title, header, *rows, last = printed(named("resnet50"), each_layer=False)
    assert title == "resnet50: one image of 224 x 224 px, 1000 classes"
    assert header.split() == ["name", "module", "output", "parameters", "decay", "group", "GMACs"]
    names = " ".join(row.split()[0] for row in rows)
    assert names == "conv1 bn1 maxpool layer1 layer2 layer3 layer4 avgpool flatten fc"
    assert " ".join(rows[3].split()) == "layer1 3 Bottleneck 256x56x56 215,808 both 0.6679"
    assert last.split() == ["total", "25,557,032", "4.0892"]


def test_print_model_has_a_line_per_layer() -> None:
    lines = printed(config.Model(name="resnet50", stride_in="1x1"), each_layer=True)
    strided = "layer2.0.conv1 Conv2d 1x1/2 128x28x28 32,768 decay 0.0257"
    assert strided in [" ".join(line.split()) for line in lines]
    assert len(lines) > 100
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("name", "hint"), [("resnet-18", "did you mean resnet18"), ("vgg16", "known: resnet18, ")]
)
def test_print_model_of_an_unknown_name(name: str, hint: str) -> None:
    with pytest.raises(BadInput, match=f"no model '{name}'; {hint}"):
        named(name)


def test_image_without_pixels() -> None:
    with pytest.raises(BadInput, match=r"data\.image_px: 0 px"):
        layers(on_meta("resnet20"), 0)
