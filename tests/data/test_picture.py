"""One picture in any form: DALI, torchvision's arm, mean image and pack agree, or name it."""

from __future__ import annotations

import random
import re
import struct
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pipelines import CPU, dali, in_pillow, samples_of

from harness.data import augment, picture
from harness.data.dataset import Dataset, open_folder
from harness.data.mean import mean_image
from harness.data.prepare import check
from harness.data.prepare.pack import Encoding, encoded
from harness.data.prepare.sources import open_sources
from harness.data.prepare.sources.source import Source
from harness.data.stream import Samples
from harness.errors import BadInput, RunFailed

PX = 48
WHOLE = augment.center_crop(0, PX)
RAMP = np.linspace(0, 1, PX)
RED, GREEN = np.broadcast_to(RAMP, (PX, PX)), np.broadcast_to(RAMP[:, None], (PX, PX))
SMOOTH = np.stack([RED, GREEN, 1 - RED], axis=2)  # of 0 to 1; smooth, so that JPEG loses little
RGB = Image.fromarray((SMOOTH * 255).round().astype(np.uint8))
GRAY, ALPHA = RGB.convert("L"), Image.fromarray((GREEN * 255).astype(np.uint8))
PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
          (0, 1, 1, 2)]  # fmt: skip
"""Of an interlaced PNG: first x and y, and steps."""


def saved(image: Image.Image, form: str = "PNG", **how: object) -> bytes:
    image.save(file := BytesIO(), form, **how)  # type: ignore[arg-type]
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(pixels: np.ndarray, color: int, *, interlaced: bool = False) -> bytes:
    """A PNG of 8 or 16 bits, also of the forms that Pillow does not write."""
    height, width = pixels.shape[:2]
    bits = 8 * pixels.itemsize
    parts = [pixels[y::dy, x::dx] for x, y, dx, dy in PASSES] if interlaced else [pixels]
    rows = b"".join(
        b"\0" + row.astype(pixels.dtype.newbyteorder(">")).tobytes()
        for part in parts
        for row in part
    )
    ihdr = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, interlaced)
    return b"".join(
        (
            picture.PNG,
            chunk(b"IHDR", ihdr),
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        )
    )


def with_chunk(content: bytes, name: bytes, data: bytes, at: int = 33) -> bytes:
    return content[:at] + chunk(name, data) + content[at:]


def with_segment(content: bytes, marker: int, data: bytes) -> bytes:
    return content[:2] + struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data + content[2:]


def without_segment(content: bytes, marker: int) -> bytes:
    at = content.index(bytes((0xFF, marker)))
    return content[:at] + content[at + 2 + struct.unpack_from(">H", content, at + 2)[0] :]


def sixteen(*bands: np.ndarray) -> np.ndarray:
    return (np.dstack(bands) * 65535).round().astype(np.uint16)


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def palette(alpha: object = None, **how: object) -> bytes:
    options = how if alpha is None else how | {"transparency": alpha}
    return saved(RGB.quantize(16), **options)


def ycck() -> bytes:
    """A CMYK JPEG whose Adobe marker calls it YCCK."""
    content = bytearray(saved(RGB.convert("CMYK"), "JPEG", quality=95))
    content[content.index(b"Adobe") + 11] = 2
    return bytes(content)


JPEG = saved(RGB, "JPEG", quality=95)
PNG = saved(RGB)
FRAMES = {"save_all": True, "append_images": [Image.new("RGB", (PX, PX), "red")]}

FORMS: dict[str, Callable[[], bytes]] = {
    "1": lambda: saved(RGB.convert("1")),
    "L": lambda: saved(GRAY),
    "L, 2 bits": lambda: saved(GRAY, bits=2),
    "L, 4 bits": lambda: saved(GRAY, bits=4),
    "L, transparent": lambda: saved(GRAY, transparency=128),
    "LA": lambda: saved(Image.merge("LA", (GRAY, ALPHA))),
    "P": palette,
    "P, 2 bits": lambda: saved(RGB.quantize(4), bits=2),
    "P, one transparent": lambda: palette(3),
    "P, half transparent": lambda: palette(bytes(range(0, 256, 16))),
    "RGB": lambda: PNG,
    "RGB, transparent": lambda: saved(RGB, transparency=(0, 0, 255)),
    "RGBA": lambda: saved(Image.merge("RGBA", (*RGB.split(), ALPHA))),
    "RGB, 16 bits": lambda: png(sixteen(SMOOTH), 2),
    "RGBA, 16 bits": lambda: png(sixteen(SMOOTH, GREEN), 6),
    "LA, 16 bits": lambda: png(sixteen(RED, GREEN), 4),
    "interlaced": lambda: png(np.asarray(RGB), 2, interlaced=True),
    "interlaced RGBA, 16 bits": lambda: png(sixteen(SMOOTH, GREEN), 6, interlaced=True),
    "gamma": lambda: with_chunk(PNG, b"gAMA", struct.pack(">I", 100_000)),
    "APNG": lambda: saved(RGB, **FRAMES),
    "animated RGBA": lambda: saved(Image.merge("RGBA", (*RGB.split(), ALPHA)), **FRAMES),
    "rotated PNG": lambda: saved(RGB, exif=rotated()),
    "JPEG": lambda: JPEG,
    "JPEG of 4:4:4": lambda: saved(RGB, "JPEG", quality=95, subsampling=0),
    "gray JPEG": lambda: saved(GRAY, "JPEG", quality=95),
    "progressive JPEG": lambda: saved(RGB, "JPEG", quality=95, progressive=True),
    "rotated JPEG": lambda: saved(RGB, "JPEG", quality=95, exif=rotated()),
    "MPO": lambda: saved(RGB, "MPO", quality=95, **FRAMES),
    "RGB in a JPEG": lambda: saved(RGB, "JPEG", quality=95, keep_rgb=True),
    "JPEG with Adobe's marker": lambda: with_segment(JPEG, 0xEE, b"Adobe\0\x64\0\0\0\0\1"),
    "JPEG without markers": lambda: without_segment(JPEG, 0xE0),
    "CMYK": lambda: saved(RGB.convert("CMYK"), "JPEG", quality=95),
    "YCCK": ycck,
    # What Pillow refuses or warns of, though it makes no pixels.
    "1 MiB of text": lambda: with_chunk(PNG, b"zTXt", b"k\0\0" + zlib.compress(bytes(1_200_000))),
    "1 MiB of text after the pixels": lambda: with_chunk(
        PNG, b"zTXt", b"k\0\0" + zlib.compress(bytes(1_200_000)), at=-12
    ),
    "1 MiB of color profile": lambda: with_chunk(
        PNG, b"iCCP", b"p\0\0" + zlib.compress(bytes(1_200_000))
    ),
    "no color profile": lambda: with_chunk(PNG, b"iCCP", b"p\0\0no"),
    "short pHYs": lambda: with_chunk(PNG, b"pHYs", b"\0"),
    "wrong sum of a text": lambda: with_chunk(PNG, b"tEXt", b"k\0v").replace(b"k\0v", b"k\0w"),
    "no EXIF in a PNG": lambda: with_chunk(PNG, b"eXIf", b"nonsense"),
    "no EXIF": lambda: with_segment(JPEG, 0xE1, b"Exif\0\0nonsense"),
    "EXIF that is cut": lambda: with_segment(
        JPEG, 0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\x09\1\x12\0\3"
    ),
    "no XMP": lambda: with_segment(JPEG, 0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmp"),
    "no MPO": lambda: with_segment(JPEG, 0xE2, b"MPF\0MM\0*\0\0\0\x08\0\x01"),
    "padding between segments": lambda: JPEG[:2] + b"\xff\xff" + JPEG[2:],
}  # fmt: skip

INKS = (*RGB.split(), ALPHA)
DECODED = {
    # Pillow cuts 16-bit gray off at 255.
    "I;16": (png(sixteen(RED)[..., 0], 0), np.dstack([RED * 255] * 3)),
    # Pillow takes all inks for inverted, which they are only where Adobe's marker is.
    "CMYK without Adobe's marker": (
        without_segment(saved(Image.merge("CMYK", INKS), "JPEG", quality=95), 0xEE),
        SMOOTH * np.asarray(ALPHA)[..., None],
    ),
}
"""Forms that Pillow alone shows wrong, and the right pixels."""


def right(name: str) -> np.ndarray:
    """The pixels of a form, by Pillow, or by hand where it is wrong or refuses them."""
    if name in DECODED:
        return DECODED[name][1]
    if list(FORMS).index(name) >= list(FORMS).index("1 MiB of text"):
        plain = JPEG if FORMS[name]().startswith(picture.JPEG) else PNG
        return np.asarray(Image.open(BytesIO(plain)).convert("RGB"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(Image.open(BytesIO(FORMS[name]())).convert("RGB"))


ALL = [*FORMS, *DECODED]


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The picture in each form, in the order of ALL."""
    folder = tmp_path_factory.mktemp("forms") / "class0"
    folder.mkdir()
    for number, name in enumerate(ALL):
        content = DECODED[name][0] if name in DECODED else FORMS[name]()
        (folder / f"{number:02d}.jpg").write_bytes(content)
    return open_folder(folder.parent)


@pytest.fixture(scope="module")
def shown(forms: Dataset) -> dict[str, np.ndarray]:
    """All of them by each arm [n, px, px, 3], in the order of ALL."""
    size, pixels = len(forms), {}
    (by_dali,) = dali(forms, WHOLE, size, PX, samples=samples_of(forms, WHOLE, size), device=CPU)
    (by_pillow,) = in_pillow(forms, WHOLE, size, PX)
    for arm, batch in (("dali", by_dali), ("torchvision", by_pillow)):
        pixels[arm] = np.empty((size, PX, PX, 3))
        pixels[arm][Samples.from_rows(batch.rows).ids] = batch.images.permute(0, 2, 3, 1).numpy()
    return pixels


@pytest.mark.parametrize("name", ALL)
def test_each_form_is_the_same_picture(
    forms: Dataset, shown: dict[str, np.ndarray], name: str
) -> None:
    number, due = ALL.index(name), right(name)
    content = forms.content(number)
    # 16 bits are rounded or cut off, and decoders of JPEG round differently.
    tolerance = 1 if content.startswith(picture.PNG) else 3
    for arm, pixels in shown.items():
        assert np.abs(pixels[number] - due).max() <= tolerance, arm
    part = forms.part(np.array([number]), name)
    assert np.abs(mean_image(part, PX) - due).max() <= tolerance
    _, packed = encoded(content, Encoding(shorter_px=PX // 2), name)
    smaller = Image.fromarray(np.round(due).astype(np.uint8)).resize(
        (PX // 2, PX // 2), Image.Resampling.LANCZOS
    )
    apart = np.asarray(Image.open(BytesIO(packed)).convert("RGB")) - np.asarray(
        smaller, dtype=float
    )
    assert np.abs(apart).mean() <= tolerance


@pytest.mark.filterwarnings("ignore")  # pytest undoes the filter of picture.py
def test_check_finds_all_forms_sound(forms: Dataset) -> None:
    for decode in (False, True):
        report = check.check(open_sources(forms.root), decode=decode, workers=1)
        assert report.wrong == []
        assert {each.where[-6:-4] for each in report.findings if each.kind == "rotated"} == {
            f"{ALL.index(name):02d}" for name in ("rotated PNG", "rotated JPEG")
        }


BROKEN = {
    "JPEG in its header": (JPEG[:100], "unreadable", "ends early"),
    "JPEG in half": (JPEG[:-200], "corrupt", "truncated"),
    "JPEG without an end": (JPEG[:-2], "corrupt", "truncated"),
    "12 bits": (JPEG.replace(b"\xc0\0\x11\x08", b"\xc0\0\x11\x0c"), "unreadable", "12 bits"),
    "PNG in half": (PNG[: len(PNG) // 2], "corrupt", "ends early"),
    "PNG without an end": (PNG[:-12], "corrupt", "ends early"),
    "wrong byte in the pixels": (
        PNG[:99] + bytes([PNG[99] ^ 1]) + PNG[100:], "corrupt", "wrong checksum of IDAT"
    ),
    "pixels in two pieces": (
        PNG[:33] + chunk(b"IDAT", PNG[41:91]) + chunk(b"tEXt", b"k\0v")
        + chunk(b"IDAT", PNG[91:-16]) + PNG[-12:], "corrupt", "not in one piece",
    ),
    "animation after an image": (
        saved(RGB, **FRAMES, default_image=True), "unreadable", "is an animation before which",
    ),
    "no palette": (png(np.zeros((5, 5), np.uint8), 3), "unreadable", "no palette"),
    "unknown part": (with_chunk(PNG, b"CgBI", bytes(4)), "unreadable", "is damaged at byte 33"),
    "wrong sum of the header": (PNG[:29] + bytes(4) + PNG[33:], "unreadable", "is of no image"),
    "0 px": (png(np.empty((0, 5), np.uint8), 0), "unreadable", "is of no image: 5 x 0 px"),
    "no pixels": (PNG[:33] + PNG[-12:], "unreadable", "not followed by pixels"),
    "no image": (b"<html>not found</html>", "unreadable", "not one of a JPEG or PNG"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_says_why(tmp_path: Path, name: str) -> None:
    content, kind, why = BROKEN[name]
    (tmp_path / "class0").mkdir()
    (tmp_path / "class0" / "a.jpg").write_bytes(content)
    (finding,) = check.check(open_sources(tmp_path), decode=True, workers=1).findings
    assert finding.kind == kind
    assert why in finding.detail
    with pytest.raises(BadInput, match=re.escape(why)):
        encoded(content, Encoding(shorter_px=9), name)
    if kind == "unreadable":
        with pytest.raises(BadInput, match=rf"a\.jpg: .*{why}.*; remove or replace it"):
            open_folder(tmp_path)
        return
    dataset = open_folder(tmp_path)
    for arm, reason in (
        (dali, "(Premature|Unexpected) end|incorrect data|Not enough"),
        (in_pillow, why),
    ):
        with pytest.raises(RunFailed, match=f"sample 0 does not decode .*{reason}") as raised:
            list(arm(dataset, WHOLE, 1, PX))  # type: ignore[operator]
        assert "\n" not in str(raised.value)


def test_no_image_is_too_large() -> None:
    """Pillow warns above 89 Mpx and refuses above 179, also to crop."""
    ihdr = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    content = picture.PNG + chunk(b"IHDR", ihdr) + chunk(b"IDAT", b"")
    assert picture.header(BytesIO(content))[:2] == (20_000, 20_000)
    assert Image.MAX_IMAGE_PIXELS is None


def test_of_sound_images_only_the_header_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = []
    read = Source.read

    def counted(self: Source, number: int, limit: int = sys.maxsize) -> bytes:
        most.append(limit)
        return read(self, number, limit)

    monkeypatch.setattr(Source, "read", counted)
    (tmp_path / "class0").mkdir()
    path = tmp_path / "class0" / "a.jpg"
    long = with_segment(JPEG, 0xE2, bytes(20_000))
    for content in (PNG, JPEG, long, b"GIF89a"):
        path.write_bytes(content + bytes(10**6))
        check.check(open_sources(tmp_path), decode=False, workers=1)
    assert max(most) <= 16 * 4200
    assert len(most) == 5


def mutated(draw: random.Random, content: bytes) -> tuple[str, bytes]:
    """An image with something around its pixels, or damaged in one of a few ways."""
    at, few = draw.randrange(len(content)), draw.randrange(1, 40)
    how = draw.choice(["around", "around", "byte", "end", "out", "in", "tail"])
    if how == "around" and content.startswith(picture.PNG):
        name = draw.choice([b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"pHYs", b"gAMA", b"cHRM",
                            b"sRGB", b"sBIT", b"tIME", b"sPLT", b"tRNS"])  # fmt: skip
        where = draw.choice([33, len(content) - 12])
        return how, with_chunk(content, name, draw.randbytes(few), at=where)
    if how == "around":
        starts = [b"Exif\0\0MM\0*", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0", b"MPF\0",
                  b"Photoshop 3.0\x008BIM", b""]  # fmt: skip
        marker = draw.choice([*range(0xE1, 0xEE), 0xEF, 0xFE])
        return how, with_segment(content, marker, draw.choice(starts) + draw.randbytes(few))
    return how, {
        "byte": content[:at] + bytes([content[at] ^ few]) + content[at + 1 :],
        "end": content[:-few],
        "out": content[:at] + content[at + few :],
        "in": content[:at] + draw.randbytes(few) + content[at:],
        "tail": content + draw.randbytes(few),
    }[how]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_check_calls_sound_is_what_dali_decodes(tmp_path: Path) -> None:
    """A minute of images that are damaged, or have something odd around their pixels.

    DALI and Pillow conceal some damage to a JPEG: then both must show the same.
    """
    draw, end, seen = random.Random(0), time.monotonic() + 60, Counter[tuple[str, bool]]()
    forms = [
        form() for name, form in FORMS.items() if not name.startswith(("1 MiB", "APNG", "anim"))
    ]
    (tmp_path / "class0").mkdir()
    path = tmp_path / "class0" / "a.jpg"
    while time.monotonic() < end:
        how, content = mutated(draw, draw.choice(forms))
        path.write_bytes(content)
        report = check.check(open_sources(tmp_path), decode=True, workers=1)
        (tmp_path / ".harness-index.npz").unlink(missing_ok=True)
        try:
            dataset = open_folder(tmp_path)
            (batch,) = dali(dataset, WHOLE, 1, PX, device=CPU)
        except (BadInput, RunFailed):
            assert report.wrong, (how, content)
            seen[how, False] += 1
            continue
        seen[how, True] += 1
        if report.wrong:
            assert how != "around", (report.wrong, content)
            continue
        (other,) = in_pillow(dataset, WHOLE, 1, PX)
        apart = batch.images.float() - other.images.float()
        assert apart.abs().max() <= 4, (how, content)
    assert seen["around", True] > 20
    assert seen["end", False] > 20
