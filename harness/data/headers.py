"""What an image's header says, read without decoding."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png")


def is_image(name: str) -> bool:
    """By its suffix; macOS leaves a `._name.jpg` beside a `name.jpg`, which is none."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def size_px(image: Path | IO[bytes]) -> tuple[int, int]:
    """Width and height as the header says, EXIF rotation ignored.

    Raises:
        ValueError: cannot be read, or is no header of a JPEG or PNG; says which.
    """
    try:
        with Image.open(image, formats=("JPEG", "PNG")) as opened:
            return opened.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "its header is not one of a JPEG or PNG"
        raise ValueError(reason) from None
