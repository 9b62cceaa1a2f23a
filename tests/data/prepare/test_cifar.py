"""`harness data get`: the bytes of the archive, as PNG files, or one line that says why not."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from harness.data.dataset import open_folder
from harness.data.prepare.sources import cifar
from harness.errors import BadInput

RNG = np.random.default_rng(7)
NAMES = ["bird", "cat", "dog"]


def packed(parts: dict[str, Any], base: str, path: Path) -> tuple[dict[str, str], str]:
    """An archive as the authors made theirs; MD5 of each file, and of the whole."""
    sums = {}
    with tarfile.open(path, "w:gz") as archive:
        for name, content in parts.items():
            data = pickle.dumps(content)
            sums[name] = hashlib.md5(data).hexdigest()
            about = tarfile.TarInfo(f"{base}/{name}")
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    return sums, hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture(params=["cifar10", "cifar100"])
def tiny(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Path, np.ndarray, list[int]]:
    """A set of 30 + 30 images in the real format: its name, archive, pixels and labels."""
    kind: Any = {"cifar10": CIFAR10, "cifar100": CIFAR100}[request.param]
    key = "labels" if request.param == "cifar10" else "fine_labels"
    names = [*(name for name, _ in kind.train_list), *(name for name, _ in kind.test_list)]
    per_file = 30 // len(kind.train_list)
    pixels = RNG.integers(0, 256, (len(names), per_file, 3072), dtype=np.uint8)
    labels = RNG.integers(0, 3, (len(names), per_file)).tolist()
    parts: dict[str, Any] = {
        name: {"data": data, key: label}
        for name, data, label in zip(names, pixels, labels, strict=True)
    }
    parts[kind.meta["filename"]] = {kind.meta["key"]: NAMES}
    path = tmp_path / "archive.tar.gz"
    sums, whole = packed(parts, kind.base_folder, path)
    own = type(
        "Tiny", (kind,),
        {
            "tgz_md5": whole,
            "train_list": [[name, sums[name]] for name, _ in kind.train_list],
            "test_list": [[name, sums[name]] for name, _ in kind.test_list],
            "meta": kind.meta | {"md5": sums[kind.meta["filename"]]},
        },
    )  # fmt: skip
    monkeypatch.setattr(f"torchvision.datasets.{request.param.upper()}", own)
    flat = pixels[: len(kind.train_list)].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return request.param, path, flat, [n for part in labels[: len(kind.train_list)] for n in part]


def test_the_png_files_hold_the_bytes_of_the_archive(
    tiny: tuple[str, Path, np.ndarray, list[int]], tmp_path: Path
) -> None:
    name, archive, pixels, labels = tiny
    root = tmp_path / "images"
    cifar.get(name, root, archive)
    assert sorted(path.name for path in root.iterdir()) == ["test", "train"]
    dataset = open_folder(root / "train")
    assert (len(dataset), dataset.classes) == (30, NAMES)
    for sample in range(30):
        path = Path(dataset.where(sample))
        number = int(path.stem)
        np.testing.assert_array_equal(np.asarray(Image.open(path)), pixels[number])
        assert path.parent.name == NAMES[labels[number]]
    with pytest.raises(BadInput, match="images: exists already"):
        cifar.get(name, root, archive)


def test_another_archive_is_not_even_opened(
    tiny: tuple[str, Path, np.ndarray, list[int]], tmp_path: Path
) -> None:
    name, archive, _, _ = tiny
    archive.write_bytes(archive.read_bytes() + b"x")
    with pytest.raises(BadInput, match=r"archive\.tar\.gz: is not the whole cifar-100?-python"):
        cifar.get(name, tmp_path / "images", archive)
    with pytest.raises(BadInput, match="nowhere: no such file"):
        cifar.get(name, tmp_path / "images", tmp_path / "nowhere")
    assert {path.name for path in tmp_path.iterdir()} == {"archive.tar.gz"}


def test_a_download_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(BadInput, match=r"127\.0\.0\.1.*refused.*give it as --archive cifar-10"):
        cifar.get("cifar10", tmp_path / "images")
    assert list(tmp_path.iterdir()) == []
