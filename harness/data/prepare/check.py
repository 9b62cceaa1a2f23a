"""Check the images of a dataset before training: report errors (WRONG) and notes (NOTES).

It reads the headers, or with `decode` all bytes, and reports all findings, not only the first.
"""

import hashlib
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import permutations

import numpy as np
from PIL import Image

from harness.data import manifest, picture
from harness.data.prepare.sources import Source
from harness.errors import BadInput
from harness.system.progress import in_parallel, track

IMAGENET = {"train": 1_281_167, "val": 50_000}
IMAGENET_CLASSES, IMAGENET_VAL_PER_CLASS = 1000, 50
HUGE_PX = 5980 * 6430  # of the largest image of ImageNet (DALI's advice what to preallocate)
LEAK_PCT = 1.0  # more validation images than that in the training set make an accuracy wrong

_HEAD_BYTES = 4096  # hashed to find duplicates; few images share them without being the same
_ORIENTATION, _ROTATED = 0x0112, range(2, 9)  # EXIF; some cameras write 0, which is undefined

WRONG = {
    "empty": "0 bytes",
    "unreadable": "no JPEG or PNG that can be used, by its header",
    "corrupt": "does not decode to its end",
    "counts": "not as many images as ImageNet has",
    "classes": "classes of training and validation differ",
    "no images": "classes without images",
    "altered": "shards with other bytes than were packed",
    "leak": "validation images that are training images too",
}
NOTES = {
    "duplicate": "validation images that are training images too",
    "CMYK": "four colors: slow to decode, and decoders differ",
    "PNG": "PNG among JPEG: no hardware decoder takes them",
    "rotated": "EXIF rotation, which the harness ignores as the published accuracies do",
    "huge": "larger than any of ImageNet: memory on a GPU",
}


@dataclass(frozen=True)
class Finding:
    """One finding: its kind (a key of WRONG or NOTES), place and details."""

    kind: str
    where: str
    detail: str = ""

    @property
    def wrong(self) -> bool:
        """Whether it would make training wrong."""
        return self.kind in WRONG


@dataclass(frozen=True)
class Split:
    """The statistics of a split."""

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
    """The result of a check."""

    decoded: bool
    splits: list[Split]
    findings: list[Finding]

    @property
    def wrong(self) -> list[Finding]:
        """Findings that would make training wrong."""
        return [finding for finding in self.findings if finding.wrong]


@dataclass(frozen=True, slots=True)
class _Image:
    """The facts of one image; few, as ImageNet has 1.3 million."""

    width: int = 0
    height: int = 0
    png: bool = False
    head: int = 0  # digest of its first bytes; 0 if it is empty or unreadable
    findings: tuple[Finding, ...] = ()


def check(sources: Sequence[Source], *, decode: bool, workers: int) -> Report:
    """Check every image of all splits; with `decode` all bytes, and packed shards' digests."""
    splits, findings, images_of = [], [], []
    for source in sources:
        read, numbers = partial(_read, source, decode=decode), range(len(source))
        what = f"checking {source.split or source.root}"
        images = list(in_parallel(read, numbers, threads=workers, what=what, unit="images"))
        images_of.append(images)
        splits.append(_split(source, images))
        findings += [finding for image in images for finding in image.findings]
        findings += _odd_png(source, images)
        findings += _counts(source)
        if decode:
            findings += _altered(source)
    findings += _other_classes(sources)
    findings += _shared(sources, images_of)
    return Report(decode, splits, findings)


def _read(source: Source, image: int, *, decode: bool) -> _Image:
    where, most = source.where(image), sys.maxsize if decode else _HEAD_BYTES
    while True:
        try:
            content = source.read(image, most)
            if not content:
                return _Image(findings=(Finding("empty", where),))
            header = picture.header(BytesIO(content))
        except (BadInput, ValueError) as error:
            if not isinstance(error, picture.EndsEarly) or len(content) < most:
                return _Image(findings=(Finding("unreadable", where, str(error)),))
            most *= 16  # a long EXIF block or color profile may come before the size
        else:
            return _looked_at(content, header, where, decode=decode)


def _looked_at(content: bytes, header: picture.Header, where: str, *, decode: bool) -> _Image:
    width, height, png, cmyk = header
    findings = [Finding("CMYK", where)] if cmyk else []
    orientation = 1
    with suppress(Exception), Image.open(BytesIO(content)) as image:  # all may be damaged
        # Not PNG's own method, which decodes the image.
        orientation = Image.Image.getexif(image).get(_ORIENTATION, 1)
    if orientation in _ROTATED:
        findings.append(Finding("rotated", where, f"orientation {orientation}"))
    if width * height > HUGE_PX:
        findings.append(Finding("huge", where, f"{width} x {height} px"))
    if decode:
        try:
            picture.decoded(content)
        except ValueError as error:
            findings.append(Finding("corrupt", where, str(error)))
    head = int.from_bytes(hashlib.sha256(content[:_HEAD_BYTES]).digest()[:8])
    return _Image(width, height, png, head, tuple(findings))


def _split(source: Source, images: Sequence[_Image]) -> Split:
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
        median_width_px=int(np.median([image.width for image in images])),
        median_height_px=int(np.median([image.height for image in images])),
    )


def _odd_png(source: Source, images: Sequence[_Image]) -> list[Finding]:
    found = [Finding("PNG", source.where(n)) for n, image in enumerate(images) if image.png]
    return found if 2 * len(found) < len(images) else []


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
    other = [n for n, images in counts.items() if images != IMAGENET_VAL_PER_CLASS]
    if source.split == "val" and other:
        detail = (
            f"class {source.classes[other[0]]} has {counts[other[0]]} images, each has "
            f"{IMAGENET_VAL_PER_CLASS} ({len(other)} such classes)"
        )
        yield Finding("counts", root, detail)


def _altered(source: Source) -> Iterator[Finding]:
    packed = manifest.read(source.root)
    shards = packed.shards if packed else {}
    for name, shard in track(shards.items(), total=len(shards), what="comparing digests"):
        path = source.root / name
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                yield Finding("altered", str(path))


def _other_classes(sources: Sequence[Source]) -> Iterator[Finding]:
    for have, lack in permutations(sources, 2):
        if missing := sorted(set(have.classes) - set(lack.classes)):
            detail = f"has no {missing[0]}, which {have.root} has ({len(missing)} such)"
            yield Finding("classes", str(lack.root), detail)


def _shared(sources: Sequence[Source], images_of: Sequence[Sequence[_Image]]) -> list[Finding]:
    """Return the validation images that have the bytes of a training image."""
    by_split = {source.split: n for n, source in enumerate(sources)}
    if not {"train", "val"} <= set(by_split):
        return []
    train, val = sources[by_split["train"]], sources[by_split["val"]]
    by_head = defaultdict(list)
    for number, image in enumerate(images_of[by_split["train"]]):
        by_head[image.head].append(number)
    duplicates = []
    for number, image in enumerate(images_of[by_split["val"]]):
        # Both images are read in full only if their first bytes agree.
        candidates = by_head.get(image.head, []) if image.head else []
        content = val.read(number) if candidates else b""
        twin = next((other for other in candidates if train.read(other) == content), None)
        if twin is not None:
            duplicates.append((val.where(number), f"is {train.where(twin)}"))
    kind = "leak" if 100 * len(duplicates) > LEAK_PCT * len(val) else "duplicate"
    return [Finding(kind, where, detail) for where, detail in duplicates]
