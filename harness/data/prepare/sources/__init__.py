"""Sources: images as people have them, before they are packed or while they are checked.

An ImageFolder tree, the tars of ILSVRC2012, Kaggle's layout, a torchvision data set, shards.
"""

from pathlib import Path

from harness.data.files import shard_paths
from harness.data.prepare.sources import cifar, imagenet
from harness.data.prepare.sources.source import Source, packed, split_folders, tree
from harness.errors import BadInput

__all__ = ["Source", "open_sources"]


def open_sources(root: Path) -> list[Source]:
    """Return the splits of a folder, whose form is detected.

    Raises:
        BadInput: the form is unknown or the data are incomplete; the message names the file.
    """
    if not root.exists():
        raise BadInput(f"{root}: No such file or directory; give the folder of your images")
    if not root.is_dir():
        raise BadInput(f"{root}: is a file; give the folder that it lies in")
    for find in (imagenet.ilsvrc, imagenet.kaggle, cifar.find):
        if sources := find(root):
            return sources
    folders = split_folders(root) or {"": root}
    return [
        packed(folder, split) if shard_paths(folder) else tree(folder, split)
        for split, folder in folders.items()
    ]
