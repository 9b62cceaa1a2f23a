"""ImageFolder trees: `train/<class>/<image>` and `val/<class>/<image>`, or one split alone."""

from __future__ import annotations

import os
from pathlib import Path

from harness.data.headers import is_image
from harness.data.image_folder import class_folders, images_in
from harness.data.prepare.sources.source import Source
from harness.errors import BadInput
from harness.system.console import track

SPLITS = {"train": "train", "val": "val", "test": "val", "validation": "val"}
"""Names of folders that hold splits -> the split."""


def split_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each split; empty if `root` has other visible folders than splits."""
    names = {entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name[0] != "."}
    if not names or not names <= set(SPLITS) or not names & {"train", "val"}:
        return {}
    folders: dict[str, Path] = {}
    for name, split in SPLITS.items():  # in this order: `val` goes before `test`
        if name in names:
            folders.setdefault(split, root / name)
    return folders


def of(folder: Path, split: str, kind: str = "folder tree") -> Source:
    """Return a tree of one split as a source."""
    classes, names, labels, paths = [], list[str](), list[int](), list[Path]()
    folders = class_folders(folder)
    for label, path in enumerate(track(folders, total=len(folders), what=f"listing {folder}")):
        classes.append(path.name)
        images = images_in(path)
        paths += [path / name for name in images]
        names += [f"{path.name}/{os.path.splitext(name)[0]}" for name in images]
        labels += [label] * len(images)
    return of_files(folder, kind, split, classes, names, labels, paths)


def of_files(
    root: Path, kind: str, split: str, classes: list[str], names: list[str], labels: list[int],
    paths: list[Path],
) -> Source:  # fmt: skip
    """Return a split whose images are files as a source."""

    def read(image: int, most: int) -> bytes:
        try:
            with paths[image].open("rb", buffering=0) as file:
                return file.read(min(most, os.fstat(file.fileno()).st_size))
        except OSError as error:
            raise BadInput(f"{paths[image]}: {error.strerror}") from None

    return Source(
        root=root,
        kind=kind,
        split=split,
        classes=classes,
        names=names,
        labels=labels,
        sizes=_sizes(paths),
        read=read,
        where=lambda image: str(paths[image]),
    )


def flat_images(folder: Path) -> list[str]:
    """Return the names of the images directly in a folder."""
    return sorted(entry.name for entry in os.scandir(folder) if is_image(entry.name))


def _sizes(paths: list[Path]) -> list[int]:
    try:
        return [path.stat().st_size for path in paths]
    except OSError as error:
        raise BadInput(f"{error.filename}: {error.strerror}; remove or replace it") from None
