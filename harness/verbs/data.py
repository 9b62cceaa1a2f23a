"""`harness data`: make data sets."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from harness.console import out
from harness.verbs.words import Parser


def add(verbs: Any) -> None:
    """The verb's words."""
    data = verbs.add_parser("data", help="make data sets").add_subparsers(
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


def _data_get(options: argparse.Namespace) -> None:
    from harness.data import cifar

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
