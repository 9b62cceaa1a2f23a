"""The verb `harness data`: make, download, pack and check data sets."""

import sys
from pathlib import Path
from typing import Literal

from typer import Argument, Option

from harness.commands.parser import group, verb
from harness.errors import EXIT_FAILED, BadInput, RunFailed
from harness.system.console import out
from harness.system.process import rank_cores

SOURCES = """\
SOURCE is one of

  a folder tree: train/<class>/<image> and val/<class>/<image>, or one of the two
  image-net.org's ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and
      ILSVRC2012_devkit_t12.tar.gz in a folder; they need not be unpacked
  Kaggle's ImageNet: the folder with ILSVRC/Data/CLS-LOC and LOC_val_solution.csv
  CIFAR-10 or CIFAR-100 as torchvision downloads it: becomes lossless PNG
  tar shards in WebDataset's format, also those of other tools"""

GET = """\
CIFAR-10 or CIFAR-100 by torchvision's downloader, as DIR/train and DIR/test, one folder of PNG
files per class."""

PACK = f"""\
Pack images into tar shards, which any disk reads fast, with an index for exact random access.

{SOURCES}

Images are copied byte by byte unless an option changes them, so training on the shards gives the
same batches as on the tree. After an interruption, the same command continues where it stopped.
Without DEST nothing is copied: only the index of a tree or of shards is made.

  harness data pack ~/Downloads/imagenet /data/imagenet
  harness data pack /data/tree /data/imagenet-256 --shorter-px 256"""

CHECK = f"""\
Check images before training: classes, counts, every header, images of val in train.

{SOURCES.replace("SOURCE", "PATH")}

Exit code 1 if training on them would be wrong. With --decode every image is decoded."""


app = group("data", "Make, pack and check data sets.")


@verb(app)
def demo(folder: Path = Argument(metavar="DIR", help="a new folder")) -> None:
    """Draw a small learnable set of JPEGs (10 classes)."""
    from harness.data import demo

    demo.draw(folder)
    out.print(f"{demo.TRAIN_IMAGES:,} + {demo.VAL_IMAGES:,} images of {len(demo.CLASSES)} classes")
    flags = f"--data.train {folder}/train --data.val {folder}/val"
    out.print(f"train on them: torchrun launch/train.py {flags}")


@verb(app, GET)
def get(
    name: Literal["cifar10", "cifar100"] = Argument(metavar="SET", help="cifar10 or cifar100"),
    folder: Path = Argument(metavar="DIR", help="a new folder"),
    archive: Path | None = Option(None, metavar="FILE",
        help="the set's .tar.gz, if already downloaded"),
) -> None:  # fmt: skip
    """Download a public set as PNG files."""
    from harness.data.prepare.sources import cifar

    cifar.get(name, folder, archive)
    config = {"cifar10": "he2015/cifar10_resnet20", "cifar100": "huang2017/cifar_densenet_40_12"}
    out.print(f"{folder}: train and test, PNG files of 32 px")
    out.print(
        f"train on them: torchrun launch/train.py configs/{config[name]}.yaml "
        f"--data.train {folder}/train --data.val {folder}/test"
    )


@verb(app, PACK)
def pack(
    source: Path = Argument(metavar="SOURCE", help="see above"),
    dest: Path | None = Argument(None, metavar="DEST",
        help="folder for the shards: DEST/train and DEST/val where the source has both"),
    split: Literal["train", "val"] | None = Option(None, help="only this split (default: all)"),
    shorter_px: int | None = Option(None, min=1, metavar="N", help="shorter side at most N px"),
    longer_px: int | None = Option(None, min=1, metavar="N", help="longer side at most N px"),
    quality: int | None = Option(None, min=1, max=100, metavar="Q",
        help="encode every JPEG again with this quality, 1 to 100; by default only those that are "
        "resized, with 90"),
    shard_images: int = Option(5000, min=1, metavar="N",
        help="images per shard; 5000 of ImageNet take half a GB"),
    shuffle_seed: int | None = Option(None, min=0, metavar="N", show_default="0",
        help="seed of the order of images in the shards, for sequential readers; the harness "
        "shuffles all images in any case"),
    in_order: bool = Option(False, "--in-order", help="keep images sorted by class"),
    workers: int = Option(0, min=0, help="threads (0: cores); the shards do not depend on it"),
) -> None:  # fmt: skip
    """Pack images into tar shards."""
    from harness.data.dataset import open_folder
    from harness.data.files import PACK_NAME
    from harness.data.prepare import pack
    from harness.data.prepare.sources import open_sources

    if in_order and shuffle_seed is not None:
        raise BadInput("--shuffle-seed: not allowed with --in-order; give one of the two")
    if dest is None:
        _index_in_place(source)
        return
    if dest.resolve() == source.resolve():
        raise BadInput(f"{dest}: is also the source; leave DEST out to index it in place")
    encoding = pack.Encoding(shorter_px, longer_px, quality)
    packing = pack.Packing(shard_images, None if in_order else shuffle_seed or 0, encoding)
    sources, flags = open_sources(source), []
    chosen = [part for part in sources if split in (None, part.split)]
    if not chosen:
        have = ", ".join(part.split or "one without a name" for part in sources)
        raise BadInput(f"{source}: has no split {split}; it has: {have}")
    for part in chosen:
        folder = dest / part.split
        packed = pack.pack(part, folder, packing, workers or rank_cores())
        dataset = open_folder(folder)
        if len(dataset) != packed.images:
            raise RunFailed(
                f"{folder}: {packed.images:,} images were packed, but it holds {len(dataset):,}; "
                "please report this"
            )
        total = sum(shard.bytes for shard in packed.shards.values())
        out.print(
            f"{folder}: {packed.images:,} images of {len(dataset.classes):,} classes in "
            f"{len(packed.shards):,} shards, {total / 1e9:,.2f} GB; {PACK_NAME} lists them"
        )
        flags.append(f"--data.{part.split or 'train'} {folder}")
    out.print(f"train on them: torchrun launch/train.py CONFIG.yaml {' '.join(flags)}")


def _index_in_place(root: Path) -> None:
    from harness.data.dataset import open_folder
    from harness.data.files import shard_paths
    from harness.data.prepare.sources.source import split_folders

    parts = {} if not root.is_dir() or shard_paths(root) else split_folders(root)
    for folder in parts.values() or [root]:
        data = open_folder(folder)
        what = f"{len(data):,} images of {len(data.classes):,} classes"
        out.print(f"{folder}: {what}; index: {data.files.index}")
    out.print("train on it: torchrun launch/train.py CONFIG.yaml --data.train DIR --data.val DIR")


@verb(app, CHECK)
def check(
    path: Path = Argument(metavar="PATH", help="see above"),
    decode: bool = Option(False, "--decode", help="decode every image completely"),
    json: Path | None = Option(None, metavar="FILE", help="write all findings"),
    workers: int = Option(0, min=0, help="threads (0: cores)"),
) -> None:
    """Check images for mistakes before training."""
    from harness.data.prepare import check, show_check
    from harness.data.prepare.sources import open_sources

    if json and not json.parent.is_dir():
        raise BadInput(f"{json.parent}: no such folder; give --json another FILE")
    report = check.check(open_sources(path), decode=decode, workers=workers or rank_cores())
    show_check.show(report)
    if json:
        show_check.write_json(report, json)
        out.print(f"all findings: {json}")
    out.print(show_check.last_line(report, path))
    if report.wrong:
        sys.exit(EXIT_FAILED)
