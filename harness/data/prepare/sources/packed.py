"""Shards as a source: to check them, or to pack them anew in other sizes."""

from __future__ import annotations

from pathlib import Path

from harness.data import manifest, shards
from harness.data.prepare.sources.source import Source, pread
from harness.data.webdataset import samples_of
from harness.errors import BadInput
from harness.system.console import track


def of(folder: Path, split: str) -> Source:
    """The shards of one split, found by the names of their members; no image is opened."""
    manifest.check_whole(folder)
    paths = shards.shard_paths(folder)
    found: list[tuple[int, str, Path, int, int]] = []
    for path in track(paths, total=len(paths), what=f"listing {folder}"):
        for each in samples_of(path, sized=False):
            found.append((each.label, each.key, path, each.offset, each.size_bytes))
    if not found:
        raise BadInput(f"{folder}: its shards hold no image with a .cls beside it")
    found.sort()
    labels, names = [label for label, *_ in found], [name for _, name, *_ in found]
    places = [(path, offset, size) for _, _, path, offset, size in found]
    classes = shards.class_names(list(zip(names, labels, strict=True)))

    def where(image: int) -> str:
        path, offset, _ = places[image]
        return f"{path}: offset {offset:,} ({names[image]})"

    def read(image: int, most: int) -> bytes:
        path, offset, size = places[image]
        return pread(path, offset, min(size, most), where(image))

    return Source(
        root=folder,
        kind="tar shards",
        split=split,
        classes=classes or [str(label) for label in range(max(labels) + 1)],
        names=names,
        labels=labels,
        sizes=[size for _, _, size in places],
        read=read,
        where=where,
    )
