"""One picture: the size in the header of a JPEG or PNG, and its pixels for all that use Pillow.

DALI decodes from the bytes that make the pixels. Pillow also parses what lies around them (texts,
color profile, EXIF, XMP, animation), and refuses or warns of an image for that. So it gets the
image without them, and without its limits, which protect a server and not a training.
"""

import struct
import warnings
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"  # the first bytes
_BITS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_FRAMES = {bytes((0xFF, n)) for n in range(0xC0, 0xD0) if n not in (0xC4, 0xC8, 0xCC)}
_SCAN = b"\xff\xda"
_NO_PIXELS = {bytes((0xFF, 0xE0 + n)) for n in range(16)} - {b"\xff\xe0", b"\xff\xee"}
"""JPEG's application segments but for JFIF's and Adobe's, which say how colors are encoded."""

_NONE = "its header is not one of a JPEG or PNG"
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", module="PIL")  # of EXIF and the like: they name no file


class Header(NamedTuple):
    """What the header of an image says; the size is without EXIF rotation."""

    width: int
    height: int
    png: bool
    cmyk: bool


class EndsEarly(ValueError):
    """The bytes end before the header does."""


def header(file: IO[bytes]) -> Header:
    """Return the header of an image; what comes before the pixels is looked at, not read.

    Raises:
        EndsEarly: all bytes were read.
        ValueError: it is no JPEG or PNG, or damaged; the message says what is wrong.
    """
    found, names = None, set()
    for name, at, _ in _parts(file):
        names.add(name)
        if name == b"IHDR":
            part, checksum = _unpack(">17sI", file, at + 4)
            width, height, bits, color, *methods = struct.unpack(">4xIIBBBBB", part)
            good = bits in _BITS.get(color, ()) and methods in ([0, 0, 0], [0, 0, 1])
            good, bands = good and zlib.crc32(part) == checksum, color
        elif name in _FRAMES:
            bits, height, width, bands = _unpack(">BHHB", file, at + 4)
            good = bits == 8 and bands in (1, 3, 4)
        elif found and name in (b"IDAT", _SCAN):
            if found.png and bands == 3 and b"PLTE" not in names:
                raise ValueError("its colors are missing: it has no palette")
            if b"acTL" in names and b"fcTL" not in names:  # DALI would show another
                raise ValueError("is an animation before which comes an image of its own")
            return found
        else:
            continue
        if not (good and 0 < width < 2**31 and 0 < height < 2**31):
            raise ValueError(f"its header is of no image: {width} x {height} px of {bits} bits")
        found = Header(width, height, name == b"IHDR", name != b"IHDR" and bands == 4)
    raise ValueError("its header is not followed by pixels")


def decoded(content: bytes) -> Image.Image:
    """Return an image as Pillow decodes it, in RGB, or L if it is gray; the pixels are as DALI's.

    Raises:
        ValueError: it does not decode to its end; the message says why.
    """
    try:
        opened = PngImageFile if content.startswith(PNG) else JpegImageFile
        with opened(BytesIO(_bare(content))) as image:
            if image.mode == "I;16":  # Pillow would cut values off at 255
                return Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
            if image.mode == "CMYK" and "adobe_transform" not in image.info:
                # Pillow takes all inks for inverted; they are only where Adobe's marker is.
                return image.point(lambda ink: 255 - ink).convert("RGB")
            image.load()
            mode = "L" if image.mode in ("1", "L") else "RGB"
            return image if image.mode == mode else image.convert(mode)
    except Exception as error:  # of many kinds, from a damaged image
        raise ValueError(str(error) or type(error).__name__) from None


def _bare(content: bytes) -> bytes:
    """Return an image without what makes no pixels; check all that does in a PNG.

    Pillow does not check the sums of a PNG's pixels, and DALI does.
    """
    kept, last, runs = [PNG if content.startswith(PNG) else JPEG], b"", 0
    for name, at, end in _parts(BytesIO(content)):
        part = content[at:end]
        runs, last = runs + (name == b"IDAT" != last), name
        if len(name) == 2:
            kept += [content[at:]] if name == _SCAN else [part] * (name not in _NO_PIXELS)
        elif name in _CRITICAL:
            if len(part) < end - at:
                raise EndsEarly(f"ends early, before byte {end:,}")
            if runs > 1:
                raise ValueError("its pixels are not in one piece")
            if name != b"IEND" and zlib.crc32(part[4:-4]).to_bytes(4) != part[-4:]:
                raise ValueError(f"wrong checksum of {name.decode()} at byte {at:,}")
            kept.append(part)
    return b"".join(kept)


def _parts(file: IO[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, first byte and end of each part: chunks of a PNG, or segments before the scan."""
    start = file.read(8)
    png = start == PNG
    if not png and not start.startswith(JPEG + b"\xff"):
        raise ValueError(_NONE)
    name, at = b"", 8 if png else 2
    while name not in (b"IEND", _SCAN):
        if png:
            length, name = _unpack(">I4s", file, at)
            end, good = at + 12 + length, name.isalpha() and name[2:3].isupper()
            good = good and (name in _CRITICAL or name[:1].islower())
        else:
            name, length = _unpack(">2sH", file, at)
            if name == b"\xff\xff":  # padding
                at += 1
                continue
            end, good = at + 2 + length, name[0] == 0xFF and name[1] >= 0xC0
        if not good:
            raise ValueError(_NONE if at < 9 else f"is damaged at byte {at:,}")
        yield name, at, end
        at = end


def _unpack(form: str, file: IO[bytes], at: int) -> tuple[Any, ...]:
    file.seek(at)
    try:
        return struct.unpack(form, file.read(struct.calcsize(form)))
    except struct.error:
        raise EndsEarly(f"ends early, before byte {at + struct.calcsize(form):,}") from None
