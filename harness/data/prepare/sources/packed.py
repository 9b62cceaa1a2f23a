"""Shards as a source: to check them, or to pack them again with other options."""

from __future__ import annotations

from pathlib import Path

from harness.data import manifest, shards
from harness.data.prepare.sources.source import Source, pread
from harness.data.webdataset import samples_of
from harness.errors import BadInput
from harness.system.console import track


def of(folder: Path, split: str) -> Source:
    """Return the shards of one split as a source, from their members' names; opens no image."""
    manifest.check_whole(folder)
    paths = shards.shard_paths(folder)
    samples: list[tuple[int, str, Path, int, int]] = []
    for path in track(paths, total=len(paths), what=f"listing {folder}"):
        for member in samples_of(path, sized=False):
            samples.append((member.label, member.key, path, member.offset, member.size_bytes))
    if not samples:
        raise BadInput(f"{folder}: its shards hold no image with a .cls beside it")
    samples.sort()
    labels, names = [label for label, *_ in samples], [name for _, name, *_ in samples]
    places = [(path, offset, size) for _, _, path, offset, size in samples]
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
