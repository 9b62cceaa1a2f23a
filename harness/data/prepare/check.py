"""Check images before training: what would make it wrong, and what is worth knowing.

Reads headers, or with `decode` everything. Finds all there is, instead of stopping at the first.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from harness.data import manifest
from harness.data.prepare.sources import Source
from harness.errors import BadInput
from harness.system.console import track
from harness.system.parallel import in_parallel

IMAGENET = {"train": 1_281_167, "val": 50_000}
IMAGENET_CLASSES = 1000
IMAGENET_VAL_PER_CLASS = 50
HUGE_PX = 5980 * 6430
"""Pixels of the largest image of ImageNet (DALI's advice for what to preallocate)."""
LEAK_PCT = 1.0
"""More validation images than this among the training images make an accuracy wrong."""

_HEAD_BYTES = 4096  # what is hashed first; few images share it without being the same
_ORIENTATION, _TURNED = 0x0112, range(2, 9)  # some write 0, which says nothing

WRONG = {
    "empty": "0 bytes",
    "unreadable": "header is not one of a JPEG or PNG",
    "corrupt": "does not decode to its end",
    "counts": "not as many images as ImageNet has",
    "classes": "classes of training and validation differ",
    "no images": "classes without images",
    "altered": "shards with other bytes than were packed",
    "leak": "validation images that are training images too",
}
NOTES = {
    "duplicate": "validation images that are training images too",
    "CMYK": "four colours: slow to decode, and decoders differ",
    "PNG": "PNG among JPEG: no hardware decoder takes them",
    "rotated": "EXIF rotation, which the harness ignores as the published accuracies do",
    "huge": "larger than any of ImageNet: memory on a GPU",
}


@dataclass(frozen=True)
class Finding:
    """One thing found: a kind of WRONG or NOTES, where, and what exactly."""

    kind: str
    where: str
    detail: str = ""

    @property
    def wrong(self) -> bool:
        """Whether training on it would be wrong."""
        return self.kind in WRONG


@dataclass(frozen=True)
class Split:
    """What a split holds."""

    split: str
    kind: str
    images: int
    classes: int
    least_per_class: int
    most_per_class: int
    gigabytes: float | None
    median_width_px: int
    median_height_px: int


@dataclass(frozen=True)
class Report:
    """All that was found."""

    decoded: bool
    splits: list[Split]
    findings: list[Finding]

    @property
    def wrong(self) -> list[Finding]:
        """Findings that would make training wrong."""
        return [each for each in self.findings if each.wrong]

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        told = [asdict(each) | {"wrong": each.wrong} for each in self.findings]
        return {
            "decoded": self.decoded,
            "splits": [asdict(split) for split in self.splits],
            "findings": told,
        }


@dataclass(frozen=True, slots=True)
class _Looked:
    """What an image's header says; of ImageNet there are 1.3 million.

    Attributes:
        head: digest of its first bytes; 0 where there are none.
        findings: of this image.
    """

    width: int = 0
    height: int = 0
    png: bool = False
    head: int = 0
    findings: tuple[Finding, ...] = ()


def check(sources: Sequence[Source], *, decode: bool, workers: int) -> Report:
    """Look at every image of all splits.

    Args:
        decode: all of every image, and the digests of the shards that pack made.
    """
    splits, findings, looks = [], [], []
    for source in sources:
        looked = list(_look_at_all(source, decode=decode, workers=workers))
        looks.append(looked)
        splits.append(_split(source, looked))
        findings += [finding for each in looked for finding in each.findings]
        findings += _odd_png(source, looked)
        findings += _counts(source)
        if decode:
            findings += _altered(source)
    findings += _other_classes(sources)
    findings += _shared(sources, looks)
    return Report(decode, splits, findings)


def _look_at_all(source: Source, *, decode: bool, workers: int) -> Iterator[_Looked]:
    what = f"checking {source.root}" if not source.split else f"checking {source.split}"
    return in_parallel(
        lambda image: _look(source, image, decode=decode), range(len(source)),
        threads=workers, what=what, unit="images",
    )  # fmt: skip


def _look(source: Source, image: int, *, decode: bool) -> _Looked:
    where = source.where(image)
    try:
        content = source.whole(image) if decode else source.read(image, _HEAD_BYTES)
    except BadInput as error:
        return _Looked(findings=(Finding("unreadable", where, str(error)),))
    if not content:
        return _Looked(findings=(Finding("empty", where),))
    looked = _opened(content, where, decode=decode)
    if looked is None and not decode:
        # Long EXIF or colour profiles come before the size.
        content = source.whole(image)
        looked = _opened(content, where, decode=False)
    if looked is None:
        return _Looked(findings=(Finding("unreadable", where),))
    head = hashlib.sha256(content[:_HEAD_BYTES]).digest()[:8]
    return replace(looked, head=int.from_bytes(head))


def _opened(content: bytes, where: str, *, decode: bool) -> _Looked | None:
    """None if the header does not parse."""
    findings = []
    try:
        with Image.open(BytesIO(content), formats=("JPEG", "PNG")) as image:
            width, height = image.size
            if image.mode == "CMYK":
                findings.append(Finding("CMYK", where))
            if (turn := image.getexif().get(_ORIENTATION, 1)) in _TURNED:
                findings.append(Finding("rotated", where, f"orientation {turn}"))
            if width * height > HUGE_PX:
                findings.append(Finding("huge", where, f"{width} x {height} px"))
            if decode:
                try:
                    image.load()
                except (OSError, ValueError, SyntaxError) as error:
                    findings.append(Finding("corrupt", where, str(error)))
            return _Looked(width, height, image.format == "PNG", findings=tuple(findings))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _split(source: Source, looked: Sequence[_Looked]) -> Split:
    counts = Counter(source.labels)
    per_class = [counts[label] for label in range(len(source.classes))]
    return Split(
        split=source.split or str(source.root),
        kind=source.kind,
        images=len(source),
        classes=len(source.classes),
        least_per_class=min(per_class),
        most_per_class=max(per_class),
        gigabytes=sum(source.sizes) / 1e9 if source.sizes else None,
        median_width_px=int(np.median([each.width for each in looked])),
        median_height_px=int(np.median([each.height for each in looked])),
    )


def _odd_png(source: Source, looked: Sequence[_Looked]) -> Iterable[Finding]:
    png = [image for image, each in enumerate(looked) if each.png]
    if 2 * len(png) < len(looked):
        return [Finding("PNG", source.where(image)) for image in png]
    return []


def _counts(source: Source) -> Iterator[Finding]:
    counts, root = Counter(source.labels), str(source.root)
    for label, name in enumerate(source.classes):
        if not counts[label]:
            yield Finding("no images", root, f"class {name}: labels count from 0")
    wnids = all(re.fullmatch(r"n\d{8}", name) for name in source.classes)
    if not wnids or len(source.classes) != IMAGENET_CLASSES or source.split not in IMAGENET:
        return
    if len(source) != (due := IMAGENET[source.split]):
        yield Finding("counts", root, f"{len(source):,} images, ImageNet has {due:,}")
    if source.split == "val":
        other = [n for n, images in counts.items() if images != IMAGENET_VAL_PER_CLASS]
        if other:
            yield Finding(
                "counts", root,
                f"class {source.classes[other[0]]} has {counts[other[0]]} images, each has "
                f"{IMAGENET_VAL_PER_CLASS} ({len(other)} such classes)",
            )  # fmt: skip


def _altered(source: Source) -> Iterator[Finding]:
    told = manifest.read(source.root) if source.root.is_dir() else None
    shards = told.shards if told else {}
    for name, shard in track(shards.items(), total=len(shards), what="comparing digests"):
        path = source.root / name
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                yield Finding("altered", str(path))


def _other_classes(sources: Sequence[Source]) -> Iterator[Finding]:
    for have, lack in ((a, b) for a in sources for b in sources if a is not b):
        missing = sorted(set(have.classes) - set(lack.classes))
        if missing:
            detail = f"has no {missing[0]}, which {have.root} has ({len(missing)} such)"
            yield Finding("classes", str(lack.root), detail)


def _shared(sources: Sequence[Source], looks: Sequence[Sequence[_Looked]]) -> list[Finding]:
    """Validation images with the bytes of a training image."""
    by_split = {source.split: n for n, source in enumerate(sources)}
    if not {"train", "val"} <= set(by_split):
        return []
    train, val = sources[by_split["train"]], sources[by_split["val"]]
    known: dict[int, list[int]] = {}
    for image, each in enumerate(looks[by_split["train"]]):
        known.setdefault(each.head, []).append(image)
    found = []
    for image, each in enumerate(looks[by_split["val"]]):
        # Only where the beginnings agree is it worth reading both.
        same = known.get(each.head, []) if each.head else []
        content = val.whole(image) if same else b""
        twin = next((other for other in same if train.whole(other) == content), None)
        if twin is not None:
            found.append((val.where(image), f"is {train.where(twin)}"))
    kind = "leak" if 100 * len(found) > LEAK_PCT * len(val) else "duplicate"
    return [Finding(kind, where, detail) for where, detail in found]
