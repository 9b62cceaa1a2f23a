"""ILSVRC2012 as image-net.org gives it, read without unpacking, and as Kaggle does.

The training tar holds one tar per class; the validation tar is flat, its labels are in the devkit.
Kaggle's "ImageNet Object Localization Challenge" has folders, ILSVRC/Data/CLS-LOC, with flat
validation images and their labels in a CSV.
"""

import csv
import os
import tarfile
from io import BytesIO
from pathlib import Path
from typing import IO, Any, cast

from harness.data.files import is_image
from harness.data.indexing import images_in
from harness.data.prepare.sources.source import Place, Source, of_files, tree
from harness.data.webdataset import check_end, opened
from harness.errors import BadInput
from harness.system.console import out
from harness.system.progress import track

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_TRUTH, _META = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"

IMAGES = Path("ILSVRC", "Data", "CLS-LOC")
LABELS = "LOC_val_solution.csv"
KIND = "Kaggle's ImageNet"

_Image = tuple[str, str, int, int]
"""Class, name without suffix, offset and size of an image in a tar."""


def ilsvrc(root: Path) -> list[Source]:
    """The splits whose tars lie in a folder.

    Raises:
        BadInput: a tar that is not ILSVRC's, or truncated; validation images without the devkit.
    """
    listed = {TRAIN: _train, VAL: _val}
    sources = [list_of(root) for name, list_of in listed.items() if (root / name).exists()]
    for name in listed:
        if sources and not (root / name).exists():
            out.print(f"{root / name}: is not there, so the split is left out")
    return sources


def _train(root: Path) -> Source:
    with opened(path := root / TRAIN) as tar:
        members = _members(path, tar)
        classes = sorted(name.removesuffix(".tar") for name, _ in members)
        images: list[_Image] = []
        for name, member in track(members, total=len(members), what=f"listing {path}"):
            wnid = name.removesuffix(".tar")
            if not name.endswith(".tar"):
                raise BadInput(
                    f"{path}: offset {member.offset_data:,} ({name}): is no tar of a class; "
                    "ILSVRC's training tar holds one for each"
                )
            inner = cast(IO[bytes], tar.extractfile(member))
            listed = _class_images(path, name, inner)
            images += [(wnid, stem, member.offset_data + at, size) for stem, at, size in listed]
    return _source(path, "train", classes, images)


def _class_images(path: Path, name: str, file: IO[bytes]) -> list[tuple[str, int, int]]:
    """Name without suffix, offset within the class's tar and size of each image in it."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            return [
                (Path(member.name).stem, member.offset_data, member.size)
                for member in tar
                if member.isfile() and is_image(member.name)
            ]
    except tarfile.TarError as error:
        raise BadInput(f"{path}: {name} within it: {error}; download it again") from None


def _val(root: Path) -> Source:
    if not (root / DEVKIT).exists():
        raise BadInput(
            f"{root / DEVKIT}: is missing; it holds the labels of the validation images: download "
            f"it beside {VAL}"
        )
    classes, truth = _devkit(root / DEVKIT)
    with opened(path := root / VAL) as tar:
        members = sorted((name, m) for name, m in _members(path, tar) if is_image(name))
    if len(members) != len(truth):
        raise BadInput(
            f"{path}: holds {len(members):,} images, and {DEVKIT} labels for {len(truth):,}; "
            "download both again"
        )
    images = [
        (wnid, Path(name).stem, member.offset_data, member.size)
        for wnid, (name, member) in zip(truth, members, strict=True)
    ]
    return _source(path, "val", classes, images)


def _members(path: Path, tar: tarfile.TarFile) -> list[tuple[str, tarfile.TarInfo]]:
    try:
        members = [(Path(member.name).name, member) for member in tar if member.isfile()]
    except tarfile.TarError as error:
        raise BadInput(f"{path}: offset {tar.offset:,}: {error}; download it again") from None
    check_end(path, tar)
    return members


def _devkit(path: Path) -> tuple[list[str], list[str]]:
    """Return the classes (wnids), sorted, and that of each validation image."""
    from scipy.io import loadmat

    try:
        with tarfile.open(path, "r:gz") as tar:
            files = {member.name.split("/", 1)[-1]: member for member in tar if member.isfile()}
            truth = cast(Any, tar.extractfile(files[_TRUTH])).read().split()
            meta = BytesIO(cast(Any, tar.extractfile(files[_META])).read())
        synsets = loadmat(cast(Any, meta), squeeze_me=True)["synsets"]
        # Those above the 1000 are the inner nodes of WordNet's tree.
        leaves = synsets[synsets["num_children"] == 0]
        ids = [int(number) for number in leaves["ILSVRC2012_ID"]]
        wnids = {n: str(wnid) for n, wnid in zip(ids, leaves["WNID"], strict=True)}
        numbers = [int(number) for number in truth]
    except (OSError, EOFError, tarfile.TarError, KeyError, ValueError) as error:
        raise BadInput(f"{path}: is no devkit of ILSVRC2012 ({error}); download it again") from None
    if unknown := set(numbers) - set(wnids):
        raise BadInput(f"{path}: {_TRUTH} names class {min(unknown)}, {_META} does not")
    return sorted(wnids.values()), [wnids[number] for number in numbers]


def _source(path: Path, split: str, classes: list[str], images: list[_Image]) -> Source:
    if not images:
        raise BadInput(f"{path}: holds no images; is it ILSVRC2012's?")
    label_of = {wnid: label for label, wnid in enumerate(classes)}
    places = [Place(label_of[wnid], f"{wnid}/{stem}", path, *at) for wnid, stem, *at in images]
    return Source(path, "ILSVRC2012 tar", split, classes, sorted(places))


def kaggle(root: Path) -> list[Source]:
    """The splits, where `root` is the folder that Kaggle's archive was unpacked into.

    Raises:
        BadInput: the CSV is missing, or does not name an image.
    """
    images = root / IMAGES
    if not images.is_dir():
        return []
    sources = []
    if (images / "train").is_dir():
        sources.append(tree(images / "train", "train", KIND))
    if (images / "val").is_dir():
        classes = sources[0].classes if sources else None
        sources.append(_kaggle_val(root / LABELS, images / "val", classes))
    if not sources:
        raise BadInput(f"{images}: has neither train nor val")
    return sources


def _kaggle_val(labels: Path, folder: Path, classes: list[str] | None) -> Source:
    wnids = _wnids(labels)
    classes = classes or sorted(set(wnids.values()))
    label_of = {wnid: label for label, wnid in enumerate(classes)}
    ordered = []
    for name in images_in(folder):
        stem = os.path.splitext(name)[0]
        if (wnid := wnids.get(stem)) is None:
            raise BadInput(f"{folder / name}: {labels} does not name it")
        if wnid not in label_of:
            raise BadInput(f"{labels}: {stem} is of class {wnid}, which has no training folder")
        ordered.append((label_of[wnid], f"{wnid}/{stem}", folder / name))
    if not ordered:
        raise BadInput(f"{folder}: holds no images")
    return of_files(folder, KIND, "val", classes, sorted(ordered))


def _wnids(path: Path) -> dict[str, str]:
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        # "n03995372 85 1 499 272": the class, then a box, once per box.
        return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
    except (OSError, KeyError, IndexError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "has no columns ImageId and PredictionString"
        raise BadInput(
            f"{path}: {reason}; Kaggle gives the validation labels in it: put it there"
        ) from None
