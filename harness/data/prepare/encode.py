"""Re-encode images for packing, if they are to be smaller; by default their bytes stay."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

from PIL import Image

from harness.data.webdataset import size_px
from harness.errors import BadInput

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
DEFAULT_QUALITY = 90


@dataclass(frozen=True)
class Encoding:
    """How images are made smaller; by default not at all.

    Attributes:
        shorter_px, longer_px: maximum of the shorter or longer side; the ratio is kept.
        quality: JPEG quality of all images; by default 90 for those that are resized.
    """

    shorter_px: int | None = None
    longer_px: int | None = None
    quality: int | None = None

    @property
    def changes_images(self) -> bool:
        """Whether any image may be re-encoded."""
        return any(value is not None for value in (self.shorter_px, self.longer_px, self.quality))

    def size_of(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height to which an image of this size is resized."""
        scale = 1.0
        if self.shorter_px is not None:
            scale = min(scale, self.shorter_px / min(width, height))
        if self.longer_px is not None:
            scale = min(scale, self.longer_px / max(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))


def encoded(content: bytes, how: Encoding, where: str) -> tuple[str, bytes]:
    """Return the suffix (by content) and the bytes of an image as it is packed.

    PNG stays PNG, which is lossless. Re-encoding drops EXIF, whose rotation is never applied.

    Args:
        where: the image's place, for a message.

    Raises:
        BadInput: it is neither JPEG nor PNG, or does not decode.
    """
    suffix = "png" if content.startswith(PNG) else "jpg" if content.startswith(JPEG) else None
    try:
        if suffix is None:
            raise ValueError("it is neither a JPEG nor a PNG")
        size = size_px(BytesIO(content))
        target = how.size_of(*size)
        if target == size and (how.quality is None or suffix == "png"):
            return suffix, content
        with Image.open(BytesIO(content)) as image:
            pixels = image if suffix == "png" and image.mode != "P" else image.convert("RGB")
            if target != size:
                pixels = pixels.resize(target, Image.Resampling.LANCZOS)
            if suffix == "png":
                pixels.save(file := BytesIO(), format="PNG")
            else:
                quality = how.quality or DEFAULT_QUALITY
                pixels.save(file := BytesIO(), format="JPEG", quality=quality)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadInput(
            f"{where}: {error}; remove or replace it, or find all such by harness data check"
        ) from None
    return suffix, file.getvalue()
