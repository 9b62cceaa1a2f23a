"""ImageNet as Kaggle gives it: ILSVRC/Data/CLS-LOC, flat validation images, their labels in a CSV.

The set of its "ImageNet Object Localization Challenge".
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

from harness.data.indexing import images_in
from harness.data.prepare.sources import folders
from harness.data.prepare.sources.source import Source, of_files
from harness.errors import BadInput

IMAGES = Path("ILSVRC", "Data", "CLS-LOC")
LABELS = "LOC_val_solution.csv"
KIND = "Kaggle's ImageNet"


def find(root: Path) -> list[Source]:
    """The splits, where `root` is the folder that Kaggle's archive was unpacked into.

    Raises:
        BadInput: the CSV is missing, or does not name an image.
    """
    images = root / IMAGES
    if not images.is_dir():
        return []
    sources = []
    if (images / "train").is_dir():
        sources.append(folders.tree(images / "train", "train", KIND))
    if (images / "val").is_dir():
        classes = sources[0].classes if sources else None
        sources.append(_val(root / LABELS, images / "val", classes))
    if not sources:
        raise BadInput(f"{images}: has neither train nor val")
    return sources


def _val(labels: Path, folder: Path, classes: list[str] | None) -> Source:
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
    """Class of each validation image, by its name without suffix."""
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
