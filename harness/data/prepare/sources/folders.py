"""ImageFolder trees and tar shards: `train` and `val` in a folder, or one split alone."""

from __future__ import annotations

import os
from pathlib import Path

from harness.data import manifest
from harness.data.files import class_folders, shard_paths
from harness.data.indexing import class_names, images_in
from harness.data.prepare.sources.source import Place, Source, of_files
from harness.data.webdataset import samples_of
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


def tree(folder: Path, split: str, kind: str = "folder tree") -> Source:
    """Return a tree of one split as a source."""
    folders = class_folders(folder)
    files = [
        (label, f"{path.name}/{os.path.splitext(name)[0]}", path / name)
        for label, path in enumerate(track(folders, total=len(folders), what=f"listing {folder}"))
        for name in images_in(path)
    ]
    return of_files(folder, kind, split, [path.name for path in folders], files)


def packed(folder: Path, split: str) -> Source:
    """Return the shards of one split as a source, from their members' names; opens no image."""
    manifest.check_whole(folder)
    paths = shard_paths(folder)
    images = sorted(
        Place(member.label, member.key, path, member.offset, member.size_bytes)
        for path in track(paths, total=len(paths), what=f"listing {folder}")
        for member in samples_of(path, sized=False)
    )
    if not images:
        raise BadInput(f"{folder}: its shards hold no image with a .cls beside it")
    classes = class_names([(image.name, image.label) for image in images])
    classes = classes or [str(label) for label in range(images[-1].label + 1)]
    return Source(folder, "tar shards", split, classes, images)
