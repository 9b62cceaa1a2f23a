"""`harness data`: make, pack and check data sets."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.commands.parser import Parser, count, positive, teaching
from harness.errors import EXIT_FAILED, BadInput, RunFailed
from harness.system import cores
from harness.system.console import out

if TYPE_CHECKING:
    from harness.data.prepare.sources import Source

SOURCES = """\
SOURCE is one of

  a folder tree: train/<class>/<image> and val/<class>/<image>, or one of the two
  image-net.org's ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and
      ILSVRC2012_devkit_t12.tar.gz in a folder; they need not be unpacked
  Kaggle's ImageNet: the folder with ILSVRC/Data/CLS-LOC and LOC_val_solution.csv
  CIFAR-10 or CIFAR-100 as torchvision downloads it: becomes lossless PNG
  tar shards in WebDataset's form, whoever made them"""

PACK = f"""\
Pack images into tar shards, which any disk reads fast, with an index for exact random access.

{SOURCES}

Bytes stay as they are unless asked otherwise, so that training on the shards gives the same
batches as on the tree. What was killed goes on where it stopped: give the same command again.
Without DEST nothing is copied: only the index of a tree or of shards is made.

  harness data pack ~/Downloads/imagenet /data/imagenet
  harness data pack /data/tree /data/imagenet-256 --shorter-px 256"""

CHECK = f"""\
Check images before they are trained on: classes, counts, every header, images of val in train.

{SOURCES.replace("SOURCE", "PATH")}

Exit code 1 where training would be wrong. With --decode every image is decoded."""


def add(verbs: Any) -> None:
    """The verb's words."""
    data = verbs.add_parser("data", help="make, pack and check data sets").add_subparsers(
        required=True, metavar="VERB", parser_class=Parser
    )
    demo = data.add_parser("demo", help="draw a small learnable set of JPEGs (10 classes)")
    demo.add_argument("folder", type=Path, metavar="DIR", help="a new folder")
    demo.set_defaults(verb=_data_demo)
    get = data.add_parser(
        "get",
        help="download a public set as PNG files",
        description="CIFAR-10 or CIFAR-100 by torchvision's downloader, as DIR/train and DIR/test, "
        "one folder of PNG files per class.",
    )
    get.add_argument("set", choices=("cifar10", "cifar100"), help="which")
    get.add_argument("folder", type=Path, metavar="DIR", help="a new folder")
    get.add_argument(
        "--archive", type=Path, metavar="FILE",
        help="the set's .tar.gz, if it is on a disk already: nothing is downloaded then",
    )  # fmt: skip
    get.set_defaults(verb=_data_get)
    _add_pack(data)
    check = teaching(data, "check", help="find what is wrong with images", description=CHECK)
    check.add_argument("path", type=Path, metavar="PATH", help="see above")
    check.add_argument("--decode", action="store_true", help="decode every image to its end")
    check.add_argument("--json", type=Path, metavar="FILE", help="write all that was found")
    check.add_argument("--workers", type=count, default=0, help="threads (0: cores, the default)")
    check.set_defaults(verb=_data_check)


def _add_pack(data: Any) -> None:
    pack = teaching(data, "pack", help="pack images into tar shards", description=PACK)
    pack.add_argument("source", type=Path, metavar="SOURCE", help="see above")
    pack.add_argument(
        "dest", type=Path, nargs="?", metavar="DEST",
        help="folder for the shards: DEST/train and DEST/val where the source has both",
    )  # fmt: skip
    pack.add_argument(
        "--split", choices=("train", "val"), help="only this one (by default all that are there)"
    )
    pack.add_argument("--shorter-px", type=positive, metavar="N", help="shorter side at most N px")
    pack.add_argument("--longer-px", type=positive, metavar="N", help="longer side at most N px")
    pack.add_argument(
        "--quality", type=_quality, metavar="Q",
        help="encode every JPEG anew with this quality, 1 to 100; by default only those that are "
        "made smaller, with 90",
    )  # fmt: skip
    pack.add_argument(
        "--shard-images", type=positive, default=5000, metavar="N",
        help="images per shard (default 5000: half a GB of ImageNet)",
    )  # fmt: skip
    order = pack.add_mutually_exclusive_group()
    order.add_argument(
        "--shuffle-seed", type=count, default=0, metavar="N",
        help="of the order within and among shards, for readers that go from end to end "
        "(default 0); the harness shuffles exactly whatever it is",
    )  # fmt: skip
    order.add_argument("--in-order", action="store_true", help="keep the order of the classes")
    pack.add_argument(
        "--workers", type=count, default=0,
        help="threads (0: cores, the default); the shards do not depend on it",
    )  # fmt: skip
    pack.set_defaults(verb=_data_pack)


def _quality(text: str) -> int:
    if not 1 <= (number := int(text)) <= 100:
        raise argparse.ArgumentTypeError(f"must be 1 to 100, not {text}")
    return number


def _data_pack(options: argparse.Namespace) -> None:
    from harness.data import manifest
    from harness.data.dataset import open_folder
    from harness.data.prepare import pack
    from harness.data.prepare.encode import Encoding

    if options.dest is None:
        _index_in_place(options)
        return
    if options.dest.resolve() == options.source.resolve():
        raise BadInput(f"{options.dest}: is the source too; without DEST, it is indexed in place")
    how = pack.Packing(
        options.shard_images,
        None if options.in_order else options.shuffle_seed,
        Encoding(options.shorter_px, options.longer_px, options.quality),
    )
    flags = []
    for source in _chosen(options):
        folder = options.dest / source.split
        told = pack.pack(source, folder, how, options.workers or cores.of_rank())
        dataset = open_folder(folder)
        if len(dataset) != told.images:
            raise RunFailed(
                f"{folder}: {told.images:,} images were packed, and {len(dataset):,} are found in "
                "it; please report this"
            )
        total = sum(shard.bytes for shard in told.shards.values())
        out.print(
            f"{folder}: {told.images:,} images of {len(dataset.classes):,} classes in "
            f"{len(told.shards):,} shards, {total / 1e9:,.2f} GB; {manifest.NAME} lists them"
        )
        flags.append(f"--data.{source.split or 'train'} {folder}")
    out.print(f"train on them: torchrun launch/train.py CONFIG.yaml {' '.join(flags)}")


def _index_in_place(options: argparse.Namespace) -> None:
    from harness.data.dataset import open_folder
    from harness.data.prepare.sources.trees import split_folders
    from harness.data.shards import shard_paths

    root = options.source
    folders = [root]
    if root.is_dir() and not shard_paths(root):
        folders = list(split_folders(root).values()) or [root]
    for folder in folders:
        data = open_folder(folder)
        out.print(
            f"{folder}: {len(data):,} images of {len(data.classes):,} classes; index: {data.index}"
        )
    out.print("train on it: torchrun launch/train.py CONFIG.yaml --data.train DIR --data.val DIR")


def _chosen(options: argparse.Namespace) -> list[Source]:
    """The splits that are asked for, alone at DEST where there is but one without a name."""
    from harness.data.prepare.sources import open_sources

    sources = open_sources(options.source)
    if not options.split:
        return sources
    chosen = [source for source in sources if source.split == options.split]
    if not chosen:
        have = ", ".join(source.split or "one without a name" for source in sources)
        raise BadInput(f"{options.source}: has no split {options.split}; it has: {have}")
    return chosen


def _data_check(options: argparse.Namespace) -> None:
    from harness.data.prepare import check, show_check
    from harness.data.prepare.sources import open_sources

    if options.json and not options.json.parent.is_dir():
        raise BadInput(f"{options.json.parent}: no such folder; give --json another FILE")
    sources = open_sources(options.path)
    report = check.check(sources, decode=options.decode, workers=options.workers or cores.of_rank())
    show_check.show(report)
    if options.json:
        show_check.write_json(report, options.json)
        out.print(f"all that was found: {options.json}")
    out.print(show_check.last_line(report, options.path))
    if report.wrong:
        sys.exit(EXIT_FAILED)


def _data_get(options: argparse.Namespace) -> None:
    from harness.data.prepare import cifar

    cifar.get(options.set, options.folder, options.archive)
    at = options.folder
    config = {"cifar10": "he2015/cifar10_resnet20", "cifar100": "huang2017/cifar_densenet_40_12"}
    out.print(f"{at}: train and test, PNG files of 32 px")
    out.print(
        f"train on them: torchrun launch/train.py configs/{config[options.set]}.yaml "
        f"--data.train {at}/train --data.val {at}/test"
    )


def _data_demo(options: argparse.Namespace) -> None:
    from harness.data import demo

    demo.draw(options.folder)
    at = options.folder
    out.print(f"{demo.TRAIN_IMAGES:,} + {demo.VAL_IMAGES:,} images of {len(demo.CLASSES)} classes")
    out.print(
        f"train on them: torchrun launch/train.py --data.train {at}/train --data.val {at}/val"
    )
