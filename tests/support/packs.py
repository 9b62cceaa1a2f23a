"""Image sets as people have them, made small: what the tests of pack and check read."""

from __future__ import annotations

import csv
import tarfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

WNIDS = ["n01440764", "n01443537", "n02084071", "n12267677"]
"""The classes of the made ILSVRC; their ILSVRC2012_ID is another order, as in the real devkit."""
IDS = {"n01440764": 3, "n01443537": 1, "n02084071": 4, "n12267677": 2}


def jpeg(number: int, size: tuple[int, int] = (40, 30), **how: object) -> bytes:
    """A JPEG of its own for each number."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    image = coarse.resize(size, Image.Resampling.BICUBIC)
    image.save(file := BytesIO(), **({"format": "JPEG", "quality": 90} | how))  # type: ignore[arg-type]
    return file.getvalue()


def tar(path: Path, members: Mapping[str, bytes], kind: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar of these files, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members, kind))
    return path


def tar_bytes(members: Mapping[str, bytes], kind: int = tarfile.USTAR_FORMAT) -> bytes:
    """The same in memory."""
    with tarfile.open(fileobj=(file := BytesIO()), mode="w", format=kind) as opened:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, BytesIO(content))
    return file.getvalue()


def images(per_class: int = 6) -> dict[str, dict[str, dict[str, bytes]]]:
    """Split, class, file name: the bytes of a small ImageNet."""
    train = {
        wnid: {f"{wnid}_{n}.JPEG": jpeg(100 * k + n, (40 + n, 30 + k)) for n in range(per_class)}
        for k, wnid in enumerate(WNIDS)
    }
    val = {wnid: {} for wnid in WNIDS}
    for number in range(1, 9):
        wnid = WNIDS[number * 7 % 4]
        val[wnid][f"ILSVRC2012_val_{number:08d}.JPEG"] = jpeg(1000 + number)
    return {"train": train, "val": val}


def tree(root: Path, per_class: int = 6) -> Path:
    """As a tree, which is what torchvision's users make of it."""
    for split, classes in images(per_class).items():
        for wnid, files in classes.items():
            (root / split / wnid).mkdir(parents=True)
            for name, content in files.items():
                (root / split / wnid / name).write_bytes(content)
    return root


def ilsvrc(root: Path) -> Path:
    """As image-net.org gives it: tars in a tar, a flat tar, a devkit with a .mat."""
    made = images()
    inner = {f"{wnid}.tar": tar_bytes(made["train"][wnid]) for wnid in reversed(WNIDS)}
    tar(root / "ILSVRC2012_img_train.tar", inner)
    flat = {name: content for files in made["val"].values() for name, content in files.items()}
    tar(root / "ILSVRC2012_img_val.tar", dict(sorted(flat.items(), reverse=True)))
    wnid_of = {name: wnid for wnid, files in made["val"].items() for name in files}
    truth = "".join(f"{IDS[wnid_of[name]]}\n" for name in sorted(wnid_of))
    devkit(root / "ILSVRC2012_devkit_t12.tar.gz", truth)
    return root


def devkit(path: Path, truth: str) -> None:
    """Class numbers of the validation images, and the classes, with an inner node among them."""
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("gloss", "O"),
             ("num_children", "f8")]  # fmt: skip
    rows = sorted((number, wnid, "a fish", "of water", 0) for wnid, number in IDS.items())
    synsets = np.array([*rows, (1001, "n00001740", "entity", "", 2)], dtype=kinds)
    savemat(meta := BytesIO(), {"synsets": synsets.reshape(-1, 1)})
    inside = "ILSVRC2012_devkit_t12/"
    with tarfile.open(path, "w:gz") as opened:
        for name, content in (
            ("readme.txt", b"hello"),
            ("data/meta.mat", meta.getvalue()),
            ("data/ILSVRC2012_validation_ground_truth.txt", truth.encode()),
        ):
            member = tarfile.TarInfo(inside + name)
            member.size = len(content)
            opened.addfile(member, BytesIO(content))


def kaggle(root: Path) -> Path:
    """As Kaggle gives it: flat validation images, their classes in a CSV."""
    made = images()
    at = root / "ILSVRC" / "Data" / "CLS-LOC"
    for wnid, files in made["train"].items():
        (at / "train" / wnid).mkdir(parents=True)
        for name, content in files.items():
            (at / "train" / wnid / name).write_bytes(content)
    (at / "val").mkdir()
    with (root / "LOC_val_solution.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ImageId", "PredictionString"])
        for wnid, files in made["val"].items():
            for name, content in files.items():
                (at / "val" / name).write_bytes(content)
                rows.writerow([name.removesuffix(".JPEG"), f"{wnid} 1 2 3 4 {wnid} 5 6 7 8 "])
    return root
