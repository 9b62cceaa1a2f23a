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
"""Folders that hold splits, and what becomes of them."""


def split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split, where a folder holds splits and nothing else that is shown."""
    found = {entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name[0] != "."}
    if not found or not found <= set(SPLITS) or not found & {"train", "val"}:
        return {}
    folders: dict[str, Path] = {}
    for name, split in SPLITS.items():  # in this order: `val` goes before `test`
        if name in found:
            folders.setdefault(split, root / name)
    return folders


def of(folder: Path, split: str, kind: str = "folder tree") -> Source:
    """A tree of one split."""
    classes, names, labels, paths = [], list[str](), list[int](), list[Path]()
    folders = class_folders(folder)
    for label, each in enumerate(track(folders, total=len(folders), what=f"listing {folder}")):
        classes.append(each.name)
        found = images_in(each)
        paths += [each / name for name in found]
        names += [f"{each.name}/{os.path.splitext(name)[0]}" for name in found]
        labels += [label] * len(found)
    return of_files(folder, kind, split, classes, names, labels, paths)


def of_files(
    root: Path, kind: str, split: str, classes: list[str], names: list[str], labels: list[int],
    paths: list[Path],
) -> Source:  # fmt: skip
    """A split of which each image is a file."""

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
    """Names of the images that lie flat in a folder."""
    return sorted(entry.name for entry in os.scandir(folder) if is_image(entry.name))


def _sizes(paths: list[Path]) -> list[int]:
    try:
        return [path.stat().st_size for path in paths]
    except OSError as error:
        raise BadInput(f"{error.filename}: {error.strerror}; remove or replace it") from None
