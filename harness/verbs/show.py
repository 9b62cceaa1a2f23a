"""`harness show`: runs and networks, for a person."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from harness.config import CIFAR_MODELS
from harness.console import out
from harness.errors import BadInput


def add(verbs: Any) -> None:
    """The verb's words."""
    show = verbs.add_parser("show", help="show a run, all runs, or a network")
    show.add_argument("what", help="`runs`, `model`, or a run folder")
    show.add_argument(
        "names", nargs="*", default=[], help="runs: folders (default runs/); model: its name"
    )
    show.add_argument("--layers", action="store_true", help="model: every layer, not every stage")
    show.add_argument("--image-px", type=int, default=0, help="model: input side, px (224, or 32)")
    show.add_argument("--classes", type=int, default=0, help="model: classes (1000, or 10)")
    show.set_defaults(verb=_show)


def _show(options: argparse.Namespace) -> None:
    if options.what == "model":
        from harness.models.describe import print_model

        if len(options.names) != 1:
            raise BadInput("show model: name one network, such as resnet50")
        name, cifar = options.names[0], options.names[0] in CIFAR_MODELS
        px, classes = options.image_px, options.classes
        print_model(
            name, px or (32 if cifar else 224), classes or (10 if cifar else 1000),
            options.layers, out,
        )  # fmt: skip
        return
    from harness.results import load, show

    if options.what == "runs":
        show.show_runs(load.find_runs([Path(name) for name in options.names] or [Path("runs")]))
    elif options.names:
        raise BadInput(f"show {options.what}: takes one run folder; several in a table: show runs")
    else:
        show.show_run(load.load_run(Path(options.what)))
