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


def _data_demo(options: argparse.Namespace) -> None:
    from harness.data import demo

    demo.draw(options.folder)
    at = options.folder
    out.print(f"{demo.TRAIN_IMAGES:,} + {demo.VAL_IMAGES:,} images of {len(demo.CLASSES)} classes")
    out.print(
        f"train on them: torchrun launch/train.py --data.train {at}/train --data.val {at}/val"
    )
