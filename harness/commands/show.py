"""`harness show`: runs, networks and published results, for a person."""

from __future__ import annotations

import argparse
from typing import Any

from harness.commands.parser import teaching
from harness.config import CIFAR_MODELS
from harness.errors import BadInput
from harness.system.console import out

DESCRIPTION = """\
Show a run, the history of all runs, a network, or published results.

  harness show runs/a-s0                         one run in full, also if it has not finished
  harness show wandb:team/bench/RUN_ID           one out of W&B; also an offline W&B folder
  harness show ref:goyal2017-resnet50-b256       a published result
  harness show runs                              the history: all runs in runs/, a line each
  harness show runs /shared/runs 'old/a-s*'      of other folders, or of some runs
  harness show runs --only model=resnet50 --only state=finished --sort top1 --reverse
  harness show runs --only 'train.global_batch=8*' --only seed=0
  harness show runs --markdown > history.md      as a table to paste
  harness show model resnet50 --layers           a network
  harness show references --model resnet50       published results

In the history `left` is the time that a run still needs, by its speed so far; `<`: or less, as it
stops at a target. A run is `silent` if it says it is running and has given no sign of life for two
minutes: it was killed, or its disk hangs. One that cannot be read is named on stderr."""


def add(verbs: Any) -> None:
    """The verb's words."""
    says = "show a run, all runs, a network, or published results"
    show = teaching(verbs, "show", help=says, description=DESCRIPTION)
    show.add_argument(
        "what", help="`runs`, `model`, `references`, or a run: folder, glob, wandb:..., ref:ID"
    )
    show.add_argument(
        "names", nargs="*", default=[],
        help="runs: folders of runs, run folders or globs (default runs/); model: its name; "
        "references: ids, for all of each",
    )  # fmt: skip
    history = show.add_argument_group("runs")
    history.add_argument(
        "--only", action="append", default=[], metavar="KEY=VALUE",
        help="runs with this state, model, device, seed or section.key setting; * and ? stand for "
        "anything; may be repeated, then all must hold",
    )  # fmt: skip
    history.add_argument(
        "--sort", metavar="KEY",
        help="by name (default), state, epoch, top1, images_per_second, left or active: lowest "
        "first, unknown last",
    )  # fmt: skip
    history.add_argument("--reverse", action="store_true", help="highest first")
    history.add_argument("--markdown", action="store_true", help="print a Markdown table")
    network = show.add_argument_group("model")
    network.add_argument("--layers", action="store_true", help="every layer, not every stage")
    network.add_argument("--image-px", type=int, default=0, help="input side, px (224, or 32)")
    network.add_argument("--classes", type=int, default=0, help="classes (1000, or 10)")
    published = show.add_argument_group("references")
    published.add_argument("--model", metavar="NAME", help="only for this network")
    published.add_argument("--metric", help="only of this kind, such as top1")
    # argparse gives up on names that come after an option; they are taken up here.
    show.set_defaults(verb=_show, words=[])


def _show(options: argparse.Namespace) -> None:
    if any(word.startswith("-") for word in options.words):
        raise BadInput(f"unrecognized arguments: {' '.join(options.words)}; see: harness --help")
    what, names = options.what, [*options.names, *options.words]
    if what != "references" and (options.model or options.metric):
        raise BadInput(f"show {what}: --model and --metric belong to `show references`")
    if what != "runs" and (options.only or options.sort or options.reverse or options.markdown):
        raise BadInput(
            f"show {what}: --only, --sort, --reverse and --markdown belong to `show runs`"
        )
    if what == "model":
        _show_model(options, names)
    elif what == "references":
        _show_references(options, names)
    elif what == "runs":
        from harness.results import show_runs

        show_runs.show_runs(
            names or ["runs"],
            only=options.only,
            sort=options.sort or "name",
            reverse=options.reverse,
            markdown=options.markdown,
        )
    elif names:
        raise BadInput(f"show {what}: takes one run folder; several in a table: show runs")
    else:
        from harness.results import show

        show.show_address(what)


def _show_model(options: argparse.Namespace, names: list[str]) -> None:
    from harness.models.summary import print_model

    if len(names) != 1:
        raise BadInput("show model: name one network, such as resnet50")
    cifar = names[0] in CIFAR_MODELS
    px, classes = options.image_px, options.classes
    print_model(
        names[0], px or (32 if cifar else 224), classes or (10 if cifar else 1000),
        options.layers, out,
    )  # fmt: skip


def _show_references(options: argparse.Namespace, names: list[str]) -> None:
    from harness.results import references, show_references

    shelf = references.load_shelf()
    for name in names:
        show_references.show_reference(references.find(shelf, name))
    if not names:
        rows = references.pick(shelf, model=options.model, metric=options.metric)
        show_references.show_references(rows)
