"""pack.json: lists the shards that harness data pack wrote, and whether packing has finished."""

from pathlib import Path

from pydantic import BaseModel, ValidationError

from harness.data.files import PACK_NAME
from harness.errors import BadInput
from harness.system.files import write_text


class Shard(BaseModel, frozen=True):
    """A finished shard."""

    images: int
    bytes: int
    sha256: str


class Manifest(BaseModel, frozen=True):
    """The source, options and finished shards of a folder."""

    version: int = 1
    source: str
    digest: str  # of the names, labels and sizes of the images to pack
    images: int
    options: dict[str, int | str | None]
    shards: dict[str, Shard] = {}
    finished: bool = False


def read(root: Path) -> Manifest | None:
    """Return the manifest of a folder; None if it was not packed.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        return Manifest.model_validate_json((root / PACK_NAME).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BadInput(f"{root / PACK_NAME}: {error.strerror}") from None
    except ValidationError as error:
        what = error.errors()[0]
        raise BadInput(
            f"{root / PACK_NAME}: {'.'.join(map(str, what['loc']))} {what['msg']}; pack again "
            "into a new folder"
        ) from None


def write(root: Path, manifest: Manifest) -> None:
    """Replace the manifest of a folder."""
    write_text(root / PACK_NAME, manifest.model_dump_json(indent=1))


def check_whole(root: Path) -> None:
    """Check that packing has finished and that no shard is missing or truncated.

    Raises:
        BadInput: one of these; the message names the shard. Folders without manifest pass.
    """
    if (manifest := read(root)) is None:
        return
    if not manifest.finished:
        raise BadInput(
            f"{root}: is not packed to the end ({len(manifest.shards)} shards are); give the same "
            "harness data pack again, which goes on where it stopped"
        )
    for name, shard in manifest.shards.items():
        path = root / name
        try:
            size = path.stat().st_size
        except OSError as error:
            reason = f"{error.strerror}, {PACK_NAME} lists it"
            raise BadInput(f"{path}: {reason}; copy it again") from None
        if size != shard.bytes:
            reason = f"has {size:,} bytes, {shard.bytes:,} when it was packed"
            raise BadInput(f"{path}: {reason}; copy it again")


def escaped(stem: str) -> str:
    """Escape dots in a file's stem: in WebDataset, a sample's name ends at its first dot."""
    return stem.replace("%", "%25").replace(".", "%2E")


def unescaped(name: str) -> str:
    """Return the inverse of `escaped`."""
    return name.replace("%2E", ".").replace("%25", "%")
