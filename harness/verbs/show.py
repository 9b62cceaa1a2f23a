"""`harness show`: runs, networks and published results, for a person."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from harness.config import CIFAR_MODELS
from harness.console import out
from harness.errors import BadInput


def add(verbs: Any) -> None:
    """The verb's words."""
    show = verbs.add_parser("show", help="show a run, all runs, a network, or published results")
    show.add_argument("what", help="`runs`, `model`, `references`, or a run folder")
    show.add_argument(
        "names", nargs="*", default=[],
        help="runs: folders (default runs/); model: its name; references: ids, for all of each",
    )  # fmt: skip
    show.add_argument("--layers", action="store_true", help="model: every layer, not every stage")
    show.add_argument("--image-px", type=int, default=0, help="model: input side, px (224, or 32)")
    show.add_argument("--classes", type=int, default=0, help="model: classes (1000, or 10)")
    show.add_argument("--model", metavar="NAME", help="references: only for this network")
    show.add_argument("--metric", help="references: only of this kind, such as top1")
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
    if options.what == "references":
        _show_references(options)
        return
    if options.model or options.metric:
        raise BadInput(f"show {options.what}: --model and --metric belong to `show references`")
    from harness.results import load, show

    if options.what == "runs":
        show.show_runs(load.find_runs([Path(name) for name in options.names] or [Path("runs")]))
    elif options.names:
        raise BadInput(f"show {options.what}: takes one run folder; several in a table: show runs")
    else:
        show.show_run(load.load_run(Path(options.what)))


def _show_references(options: argparse.Namespace) -> None:
    from harness.results import references, show_references

    shelf = references.load_shelf()
    for name in options.names:
        show_references.show_reference(references.find(shelf, name))
    if not options.names:
        rows = references.pick(shelf, model=options.model, metric=options.metric)
        show_references.show_references(rows)
