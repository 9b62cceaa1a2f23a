"""Published and saved weights: what is accepted, what is refused, and never anything by halves."""

from __future__ import annotations

import argparse
import io
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from harness import config
from harness.errors import BadInput
from harness.models import build
from harness.models.weights import load_weights

State = dict[str, Tensor]


def network(name: str = "resnet20", classes: int = 10, **settings: Any) -> nn.Module:
    return build(config.Model(name=name, **settings), classes)


def renamed(state: State, old: str, new: str) -> State:
    return {re.sub(old, new, key): value for key, value in state.items()}


def equal(model: nn.Module, state: State) -> bool:
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def refusal(model: nn.Module, spec: str, model_name: str = "resnet20") -> str:
    """The one line with which weights are refused; the model is left untouched."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(BadInput) as caught:
        load_weights(model, spec, model_name)
    assert equal(model, before)
    message = str(caught.value)
    assert message.startswith("model.weights: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "packed",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 90},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: renamed(state, "^", "module."),
        lambda state: {"state_dict": renamed(state, "^", "module._orig_mod.")},
        lambda state: renamed(state, "^", "_orig_mod.module."),
        lambda state: renamed(state, r"^fc\.", "linear."),
        lambda state: renamed(renamed(state, r"^fc\.", "classifier."), "^", "module."),
        lambda state: {"model": renamed(state, r"^fc\.", "head.")},
        lambda state: {k: v for k, v in state.items() if "num_batches" not in k},
    ],
    ids=[
        "bare",
        "state_dict",
        "model",
        "ddp",
        "ddp-compiled",
        "compiled-ddp",
        "linear",
        "ddp-classifier",
        "head",
        "before-0.4.1",
    ],
)
def test_files_that_load(packed: Callable[[State], dict[str, Any]], tmp_path: Path) -> None:
    source, model = network(), network()
    torch.save(packed(source.state_dict()), tmp_path / "weights.pt")
    assert not equal(model, source.state_dict())
    load_weights(model, str(tmp_path / "weights.pt"), "resnet20")
    assert equal(model, source.state_dict())


def test_no_such_file(tmp_path: Path) -> None:
    assert "none.pt: No such file or directory" in refusal(network(), str(tmp_path / "none.pt"))
    assert f"{tmp_path}: Is a directory" in refusal(network(), str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"hello world\n", b"\xff\xd8\xff\xe0" + bytes(64)])
def test_not_a_checkpoint(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    assert f"{path}: not a checkpoint of plain tensors" in refusal(network(), str(path))


def test_cut_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "cut.pt"
    torch.save(network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:100_000])
    assert f"{path}: not a checkpoint of plain tensors" in refusal(network(), str(path))


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "objects.pt"
    torch.save({"state_dict": network().state_dict(), "args": argparse.Namespace(lr=1)}, path)
    assert "holds Python objects (argparse.Namespace), which are refused" in refusal(
        network(), str(path)
    )
    torch.save({"args": argparse.Namespace()}, path, _use_new_zipfile_serialization=False)
    assert "not a checkpoint of plain tensors" in refusal(network(), str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "no state dict but a list"),
        ({"epoch": 3, "lr": 0.1}, "'state_dict' or 'model': 'epoch' is of type int"),
        ({0: torch.zeros(1)}, "0 is of type Tensor"),
        ({}, "it has no conv1.weight"),
    ],
)
def test_no_state_dict(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file.pt")
    assert message in refusal(network(), str(tmp_path / "file.pt"))


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (
            {"classes": 100},
            {"classes": 10},
            "its fc.weight is 100x64, here 10x64; probably another number of classes",
        ),
        (
            {"name": "resnet20"},
            {"name": "resnet32"},
            "does not fit resnet32: it has no layer1.3.conv1.weight; probably another model",
        ),
        (
            {"name": "resnet32"},
            {"name": "resnet20"},
            "its layer1.3.conv1.weight has no place; probably another model",
        ),
        (
            {"shortcut": "B"},
            {"shortcut": "A"},
            "its layer2.0.downsample.0.weight has no place; probably another model or shortcut",
        ),
        (
            {"name": "resnet18", "stem": "imagenet"},
            {"name": "resnet18", "stem": "cifar"},
            "its conv1.weight is 64x3x7x7, here 64x3x3x3; probably another model or stem",
        ),
    ],
    ids=["classes", "missing", "unexpected", "shortcut", "stem"],
)
def test_weights_that_do_not_fit(
    source: dict[str, Any], target: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pt"
    torch.save(network(**source).state_dict(), path)
    line = refusal(network(**target), str(path), target.get("name", "resnet20"))
    assert message in line
    assert str(path) in line


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as torch.hub's cache, and no network."""

    def refused(url: str, *args: object, **options: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refused)
    return tmp_path / "hub" / "checkpoints"


def planted(hub: Path, source: nn.Module) -> None:
    """Put weights where a download of torchvision's ResNet-18 would."""
    hub.mkdir(parents=True)
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    torch.save(source.state_dict(), hub / Path(url).name)


def test_torchvision_weights_come_from_its_cache(hub: Path) -> None:
    source, model = network("resnet18", 1000), network("resnet18", 1000)
    planted(hub, source)
    load_weights(model, "torchvision:IMAGENET1K_V1", "resnet18")
    assert equal(model, source.state_dict())


def test_torchvisions_old_densenet_file_loads_as_torchvision_loads_it(hub: Path) -> None:
    """Its names hold dots, as `norm.1`, and it has no batch counts."""
    source = network("densenet121", 1000).state_dict()
    kept = {key: value for key, value in source.items() if "num_batches" not in key}
    old = renamed(kept, r"(denselayer\d+\.(norm|conv))([12])", r"\1.\3")
    assert "features.denseblock4.denselayer16.norm.2.running_var" in old
    entry = torchvision.models.DenseNet121_Weights.IMAGENET1K_V1
    hub.mkdir(parents=True)
    torch.save(old, hub / Path(entry.url).name)
    model = network("densenet121", 1000)
    load_weights(model, "torchvision:IMAGENET1K_V1", "densenet121")
    assert equal(model, source)
    assert equal(torchvision.models.densenet121(weights=entry), source)


def test_densenets_classifier_may_have_any_published_name(tmp_path: Path) -> None:
    source, model = network("densenet_40_12"), network("densenet_40_12")
    torch.save(renamed(source.state_dict(), r"^classifier\.", "fc."), tmp_path / "weights.pt")
    load_weights(model, str(tmp_path / "weights.pt"), "densenet_40_12")
    assert equal(model, source.state_dict())
    line = refusal(network("densenet_40_12", 100), str(tmp_path / "weights.pt"))
    assert line.endswith(
        "its classifier.weight is 10x448, here 100x448; probably another number of classes"
    )


def test_torchvision_weights_for_another_number_of_classes(hub: Path) -> None:
    planted(hub, network("resnet18", 1000))
    line = refusal(network("resnet18", 10), "torchvision:IMAGENET1K_V1", "resnet18")
    assert "torchvision:IMAGENET1K_V1 does not fit resnet18: its fc.weight is 1000x512" in line
    assert line.endswith("probably another number of classes")


@pytest.mark.parametrize("entry", ["IMAGENET1K_V9", "DEFAULTS", ""])
def test_unknown_entry_lists_the_known_ones(entry: str, hub: Path) -> None:
    line = refusal(network("resnet50"), f"torchvision:{entry}", "resnet50")
    assert f"no {entry!r} for resnet50; it has IMAGENET1K_V1, IMAGENET1K_V2" in line


def test_torchvision_has_no_cifar_networks(hub: Path) -> None:
    line = refusal(network("resnet20"), "torchvision:IMAGENET1K_V1", "resnet20")
    assert "torchvision has no weights for resnet20; name a file" in line


def test_failed_download_says_where_to_put_the_file(hub: Path) -> None:
    line = refusal(network("resnet18"), "torchvision:IMAGENET1K_V1", "resnet18")
    assert "no route to host" in line
    assert "https://download.pytorch.org/models/resnet18-" in line
    assert str(hub / "resnet18-") in line


def test_download_is_checked_against_the_hash_in_its_name(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(url: str, path: str, digest: str, progress: bool) -> None:
        assert digest in url
        assert re.fullmatch("[0-9a-f]{8,}", digest)
        raise RuntimeError(f'invalid hash value (expected "{digest}", got "0")')

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    line = refusal(network("resnet18"), "torchvision:IMAGENET1K_V1", "resnet18")
    assert "RuntimeError: invalid hash value" in line


@pytest.fixture
def shared() -> Path:
    """The folder with real images and published weights."""
    folder = os.environ.get("HARNESS_SHARED_DATA")
    if folder is None:
        pytest.skip("HARNESS_SHARED_DATA is not set")
    return Path(folder)


@pytest.mark.shared_data
def test_published_resnet20_loads_and_sees(shared: Path) -> None:
    """On every 20th test image; on all 10,000 it was right 8,103 times, as with its own code."""
    model = network("resnet20", 10).eval()
    load_weights(model, str(shared / "weights" / "resnet20.th"), "resnet20")
    with tarfile.open(shared / "data" / "cifar10-jpeg.tar") as archive:
        members = {member.name: member for member in archive.getmembers()}
        names = sorted(name for name in members if re.match(r"cifar10/test/.*\.jpg$", name))
        classes = sorted({Path(name).parent.name for name in names})
        pixels, labels = [], []
        for name in names[::20]:
            file = archive.extractfile(members[name])
            assert file is not None
            pixels.append(np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB")))
            labels.append(classes.index(Path(name).parent.name))
    mean, std = (torch.tensor(config.Data.model_fields[key].default) for key in ("mean", "std"))
    x = ((torch.from_numpy(np.stack(pixels)) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        right = (model(x).argmax(1) == torch.tensor(labels)).sum().item()
    assert (len(names), len(labels)) == (10_000, 500)
    # 400 here; another JPEG decoder or CPU may turn an image or two.
    assert right == pytest.approx(400, abs=3)
