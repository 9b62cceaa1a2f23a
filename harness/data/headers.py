"""Read an image's size from its header, without decoding."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png")


def is_image(name: str) -> bool:
    """Return whether a file is an image, by its suffix; macOS's `._name.jpg` files are not."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def size_px(image: Path | IO[bytes]) -> tuple[int, int]:
    """Return width and height from the header, without EXIF rotation.

    Raises:
        ValueError: the file cannot be read, or has no header of a JPEG or PNG; the message says so.
    """
    try:
        with Image.open(image, formats=("JPEG", "PNG")) as opened:
            return opened.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "its header is not one of a JPEG or PNG"
        raise ValueError(reason) from None
