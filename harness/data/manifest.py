"""pack.json: what harness data pack wrote into a folder of shards, and whether it is done."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.errors import BadInput
from harness.system.files import write_atomic

NAME = "pack.json"
_ESCAPED = {".": "%2E", "%": "%25"}


class Shard(BaseModel):
    """A finished shard."""

    model_config = ConfigDict(frozen=True)
    images: int
    bytes: int
    sha256: str


class Manifest(BaseModel):
    """A folder of shards: from what, how, and which are finished."""

    model_config = ConfigDict(frozen=True)
    version: int = 1
    source: str
    digest: str
    """Of the names, labels and sizes that were to be packed."""
    images: int
    options: dict[str, int | str | None]
    shards: dict[str, Shard] = {}
    finished: bool = False


def read(root: Path) -> Manifest | None:
    """The manifest of a folder, if pack made it.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        return Manifest.model_validate_json((root / NAME).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BadInput(f"{root / NAME}: {error.strerror}") from None
    except ValidationError as error:
        what = error.errors()[0]
        raise BadInput(
            f"{root / NAME}: {'.'.join(map(str, what['loc']))} {what['msg']}; pack again into a "
            "new folder"
        ) from None


def write(root: Path, manifest: Manifest) -> None:
    """Replace the manifest of a folder."""
    text = manifest.model_dump_json(indent=1)
    write_atomic(root / NAME, lambda part: part.write_text(text))


def check_whole(root: Path) -> None:
    """Refuse to read what is not packed to the end, or has lost a shard since.

    Raises:
        BadInput: names the shard and what to do. No error where pack was not at work.
    """
    told = read(root)
    if told is None:
        return
    if not told.finished:
        raise BadInput(
            f"{root}: is not packed to the end ({len(told.shards)} shards are); give the same "
            "harness data pack again, which goes on where it stopped"
        )
    for name, shard in told.shards.items():
        try:
            size = (root / name).stat().st_size
        except OSError as error:
            raise BadInput(f"{root / name}: {error.strerror}, {NAME} lists it; copy it again"
                           ) from None  # fmt: skip
        if size != shard.bytes:
            raise BadInput(
                f"{root / name}: has {size:,} bytes, {shard.bytes:,} when it was packed; copy it "
                "again"
            )


def escaped(stem: str) -> str:
    """A file's name without suffix, as the name of a sample, which ends at its first dot."""
    return re.sub(r"[.%]", lambda found: _ESCAPED[found[0]], stem)


def unescaped(name: str) -> str:
    """The inverse."""
    return name.replace("%2E", ".").replace("%25", "%")
