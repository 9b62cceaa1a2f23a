"""ImageNet as people have it: each layout gives the same images, and its faults are one line."""

from __future__ import annotations

import pickle
import re
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import packs
import pytest
from PIL import Image

from harness.data.prepare.sources import Source, open_sources
from harness.errors import BadInput


def samples_of(source: Source) -> list[tuple[str, int, bytes]]:
    return [(source.names[k], source.labels[k], source.read(k)) for k in range(len(source))]


@pytest.mark.parametrize("kind", ["tree", "ilsvrc", "kaggle"])
def test_each_layout_gives_the_same_images(tmp_path: Path, kind: str) -> None:
    sources = open_sources(getattr(packs, kind)(tmp_path / "data"))
    assert [source.split for source in sources] == ["train", "val"]
    for source in sources:
        made = packs.images()[source.split]
        assert source.classes == packs.WNIDS
        assert samples_of(source) == [
            (f"{wnid}/{name.removesuffix('.JPEG')}", label, made[wnid][name])
            for label, wnid in enumerate(packs.WNIDS)
            for name in sorted(made[wnid])
        ]
        assert source.sizes == [len(content) for *_, content in samples_of(source)]
        assert source.read(0, 10) == source.read(0)[:10]


@pytest.mark.parametrize("kind", ["tree", "ilsvrc", "kaggle"])
def test_where_an_image_lies_is_told(tmp_path: Path, kind: str) -> None:
    _, val = open_sources(getattr(packs, kind)(tmp_path / "data"))
    stem = val.names[0].split("/")[1]
    where = {
        "tree": rf"data/val/n01440764/{stem}\.JPEG",
        "ilsvrc": rf"data/ILSVRC2012_img_val\.tar: offset [\d,]+ \(n01440764/{stem}\)",
        "kaggle": rf"data/ILSVRC/Data/CLS-LOC/val/{stem}\.JPEG",
    }
    assert re.search(where[kind] + "$", val.where(0))


def test_one_split_alone(tmp_path: Path) -> None:
    (source,) = open_sources(packs.tree(tmp_path / "data") / "val")
    assert (source.split, len(source)) == ("", 8)


@pytest.mark.parametrize("val", ["test", "validation"])
def test_other_names_of_the_validation_split(tmp_path: Path, val: str) -> None:
    root = packs.tree(tmp_path / "data")
    (root / "val").rename(root / val)
    assert [source.split for source in open_sources(root)] == ["train", "val"]


def test_classes_may_be_called_like_splits(tmp_path: Path) -> None:
    for name in ("train", "bus", "val"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_bytes(packs.jpeg(1))
    (source,) = open_sources(tmp_path)
    assert source.classes == ["bus", "train", "val"]


# CIFAR.


def cifar10(root: Path) -> np.ndarray:
    """As torchvision unpacks it, with its check of the digests switched off by the test."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 3, 32, 32), dtype=np.uint8)
    names = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
    for k, name in enumerate(names):
        part = slice(10 * k, 10 * k + 10)
        batch = {"data": pixels[part].reshape(10, -1), "labels": list(range(10))}
        (folder / name).write_bytes(pickle.dumps(batch))
    meta = {"label_names": ["zebra", *"abcdefghi"]}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta))
    return pixels.transpose(0, 2, 3, 1)


def test_cifar_becomes_lossless_png(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    pixels = cifar10(tmp_path)
    train, val = open_sources(tmp_path)
    assert (train.split, len(train), val.split, len(val)) == ("train", 50, "val", 10)
    assert train.classes == [*"abcdefghi", "zebra"]
    for source, of in ((train, pixels[:50]), (val, pixels[50:])):
        for name, label, content in samples_of(source):
            folder, stem = name.split("/")
            with Image.open(BytesIO(content)) as image:
                assert image.format == "PNG"
                np.testing.assert_array_equal(np.asarray(image), of[int(stem)])
            assert source.classes[label] == folder == ["zebra", *"abcdefghi"][int(stem) % 10]


def test_cifar_with_a_damaged_file_is_refused(tmp_path: Path) -> None:
    cifar10(tmp_path)
    with pytest.raises(BadInput, match=r"Dataset not found or corrupted; download CIFAR10 again"):
        open_sources(tmp_path)


# What is not ILSVRC, or not whole.


def refused(root: Path) -> str:
    with pytest.raises(BadInput) as caught:
        open_sources(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_training_tar_that_is_not_ilsvrc(tmp_path: Path) -> None:
    tar = packs.tar(tmp_path / "ILSVRC2012_img_train.tar", {"a.jpg": packs.jpeg(1)})
    assert refused(tmp_path) == (
        f"{tar}: offset 512 (a.jpg): is no tar of a class; ILSVRC's training tar holds one for each"
    )
    packs.tar(tar, {"n01440764.tar": b"no tar at all" * 100})
    assert refused(tmp_path).startswith(f"{tar}: n01440764.tar within it: ")
    packs.tar(tar, {"n01440764.tar": packs.tar_bytes({})})
    assert refused(tmp_path) == f"{tar}: holds no images; is it ILSVRC2012's?"
    with tarfile.open(tar, "w:gz"):
        pass
    assert "is no uncompressed tar" in refused(tmp_path)


@pytest.mark.parametrize("name", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"])
@pytest.mark.parametrize("cut", [0.1, 0.3, 0.5])
def test_a_truncated_tar_is_named_with_its_offset(tmp_path: Path, name: str, cut: float) -> None:
    root = packs.ilsvrc(tmp_path)
    whole = (root / name).read_bytes()
    (root / name).write_bytes(whole[: int(cut * len(whole))])
    assert re.match(rf"{root / name}: (n\d+\.tar within it|offset|truncated at)", refused(root))


def test_only_one_of_the_tars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = packs.ilsvrc(tmp_path)
    (root / "ILSVRC2012_img_train.tar").unlink()
    (val,) = open_sources(root)
    assert (val.split, val.classes) == ("val", packs.WNIDS)


def test_validation_images_need_the_devkit(tmp_path: Path) -> None:
    root = packs.ilsvrc(tmp_path)
    kit = root / "ILSVRC2012_devkit_t12.tar.gz"
    packs.devkit(kit, "1\n2\n")
    assert refused(root).startswith(
        f"{root}/ILSVRC2012_img_val.tar: holds 8 images, and ILSVRC2012_devkit_t12.tar.gz labels "
        "for 2; download"
    )
    packs.devkit(kit, "9\n" * 8)
    assert "names class 9, data/meta.mat does not" in refused(root)
    for content in (b"", b"no tar", packs.tar_bytes({"a/b": b""})):
        kit.write_bytes(content)
        assert refused(root).startswith(f"{kit}: is no devkit of ILSVRC2012 (")
    kit.unlink()
    assert refused(root).startswith(f"{kit}: is missing; it holds the labels")


def test_kaggles_csv_is_needed_and_must_name_all(tmp_path: Path) -> None:
    root = packs.kaggle(tmp_path)
    table = root / "LOC_val_solution.csv"
    rows = table.read_text().splitlines()
    table.write_text("\n".join(rows[:-1]))
    missing = rows[-1].split(",")[0]
    assert refused(root) == (
        f"{root}/ILSVRC/Data/CLS-LOC/val/{missing}.JPEG: {table} does not name it"
    )
    table.write_text("\n".join([*rows[:-1], f"{missing},n99999999 1 2 3 4"]))
    assert "is of class n99999999, which has no training folder" in refused(root)
    table.write_text("a,b\n1,2\n")
    assert "has no columns ImageId and PredictionString" in refused(root)
    table.unlink()
    assert refused(root).startswith(f"{table}: No such file or directory; Kaggle gives the valid")


def test_what_is_none_of_them(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "is empty; give a folder" in refused(tmp_path / "empty")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "x.jpg").write_bytes(packs.jpeg(1))
    assert "images lie flat in it" in refused(tmp_path / "flat")
