"""The `harness` command: everything around a training run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from harness import __version__
from harness.config import CIFAR_MODELS, ModelName
from harness.console import err, out
from harness.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, BadInput, HarnessError


def main(argv: Sequence[str] | None = None) -> None:
    """Run a verb; errors are one line and an exit code."""
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    if hasattr(options, "words"):
        options.words = rest  # for launch/train.py, which knows them
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        options.verb(options)
    except HarnessError as error:
        err.print(f"error: {' '.join(str(error).split())}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(EXIT_INTERRUPTED)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        what = message.removeprefix("argument ")
        err.print(f"error: {what}; see: {self.prog} --help")
        sys.exit(EXIT_BAD_INPUT)


def _positive(text: str) -> int:
    """argparse's type of a count."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return number


def _parser() -> argparse.ArgumentParser:
    """Each verb's words; what a verb needs is imported when it runs."""
    parser = _Parser(
        prog="harness",
        description="Data, results and measurements around launch/train.py.",
        epilog="exit codes: 0 good, 1 bad verdict or failed, 2 bad input, 3 cannot tell",
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(required=True, metavar="VERB", parser_class=_Parser)

    data = verbs.add_parser("data", help="make data sets").add_subparsers(
        required=True, metavar="VERB", parser_class=_Parser
    )
    demo = data.add_parser("demo", help="draw a small learnable set of JPEGs (10 classes)")
    demo.add_argument("folder", type=Path, metavar="DIR", help="a new folder")
    demo.set_defaults(verb=_data_demo)

    show = verbs.add_parser("show", help="show a run, all runs, a network, or published results")
    show.add_argument("what", help="`runs`, `model`, `references`, or a run folder")
    show.add_argument(
        "names", nargs="*", default=[],
        help="runs: folders (default runs/); model: its name; references: one's id, for all of it",
    )  # fmt: skip
    show.add_argument("--layers", action="store_true", help="model: every layer, not every stage")
    show.add_argument("--image-px", type=int, default=0, help="model: input side, px (224, or 32)")
    show.add_argument("--classes", type=int, default=0, help="model: classes (1000, or 10)")
    show.add_argument("--model", metavar="NAME", help="references: only for this network")
    show.add_argument("--metric", help="references: only of this kind, such as top1")
    show.set_defaults(verb=_show)

    bench = verbs.add_parser("bench", help="measure").add_subparsers(
        required=True, metavar="VERB", parser_class=_Parser
    )
    overhead = bench.add_parser(
        "overhead", help="the harness's training loop against a bare loop, in turns"
    )
    overhead.add_argument(
        "--model", default="resnet18", choices=get_args(ModelName), metavar="NAME",
        help="network (default resnet18)",
    )  # fmt: skip
    overhead.add_argument("--image-px", type=_positive, default=64, help="px (default 64)")
    overhead.add_argument("--batch", type=_positive, default=32, help="images (default 32)")
    overhead.add_argument("--steps", type=_positive, default=60, help="steps per turn (default 60)")
    overhead.add_argument("--turns", type=_positive, default=6, help="turns of each (default 6)")
    overhead.add_argument("--eager", action="store_true", help="without torch.compile")
    overhead.set_defaults(verb=_bench_overhead)
    loader = bench.add_parser(
        "data", help="the DALI loader against torchvision's ImageFolder and DataLoader, in turns"
    )
    loader.add_argument("folder", type=Path, metavar="DIR", help="images, one folder per class")
    loader.add_argument("--image-px", type=_positive, default=224, help="px (default 224)")
    loader.add_argument("--batch", type=_positive, default=64, help="images (default 64)")
    loader.add_argument("--threads", type=int, default=0, help="threads, and workers (0: cores)")
    loader.add_argument("--batches", type=_positive, default=20, help="per turn (default 20)")
    loader.add_argument("--turns", type=_positive, default=5, help="turns of each (default 5)")
    loader.set_defaults(verb=_bench_data)
    _add_doctor(verbs.add_parser("doctor", help="try out whether promises hold on this machine"))
    return parser


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(required=True, metavar="VERB", parser_class=_Parser)
    resume = verbs.add_parser(
        "resume",
        help="whether a run that is killed ends in the same bits as one that is not",
        usage="harness doctor resume [CONFIG.yaml] [options] [--section.key VALUE ...]",
        epilog="CONFIG.yaml and --section.key as launch/train.py takes them; by default the "
        "quickstart. Exit codes: 0 the same, 1 not the same, 2 bad input, 3 cannot tell.",
        allow_abbrev=False,
    )
    resume.add_argument(
        "--ranks", type=_positive, metavar="N", help="default: one per GPU, or 3 on the CPU"
    )
    resume.add_argument("--steps", type=_positive, default=60, help="of each run (default 60)")
    resume.add_argument("--kills", type=_positive, default=5, help="in all (default 5)")
    resume.add_argument("--seed", type=int, default=0, help="of the kills (default 0)")
    resume.add_argument("--keep", type=Path, metavar="DIR", help="keep runs and logs, in a new DIR")
    resume.add_argument(
        "--loss-bound-pct", type=float, default=2.0, metavar="PCT",
        help="on a GPU with engine.deterministic off: how far losses may differ (default 2)",
    )  # fmt: skip
    resume.set_defaults(verb=_doctor_resume, words=[])


def _data_demo(options: argparse.Namespace) -> None:
    from harness.data import demo

    demo.draw(options.folder)
    at = options.folder
    out.print(f"{demo.TRAIN_IMAGES:,} + {demo.VAL_IMAGES:,} images of {len(demo.CLASSES)} classes")
    out.print(
        f"train on them: torchrun launch/train.py --data.train {at}/train --data.val {at}/val"
    )


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
    from harness.results import load, references, show, show_references

    if options.what == "references":
        shelf = references.load_shelf()
        for name in options.names:
            show_references.show_reference(references.find(shelf, name))
        if not options.names:
            rows = references.pick(shelf, model=options.model, metric=options.metric)
            show_references.show_references(rows)
    elif options.model or options.metric:
        raise BadInput(f"show {options.what}: --model and --metric belong to `show references`")
    elif options.what == "runs":
        show.show_runs(load.find_runs([Path(name) for name in options.names] or [Path("runs")]))
    elif options.names:
        raise BadInput(f"show {options.what}: takes one run folder; several in a table: show runs")
    else:
        show.show_run(load.load_run(Path(options.what)))


def _bench_overhead(options: argparse.Namespace) -> None:
    from harness.bench import overhead

    overhead.measure(
        options.model,
        image_px=options.image_px,
        batch=options.batch,
        steps=options.steps,
        turns=options.turns,
        compiled=not options.eager,
    )


def _bench_data(options: argparse.Namespace) -> None:
    from harness.bench import data

    threads = options.threads or data.cores()
    load = data.Load(options.folder, options.image_px, options.batch, threads, options.batches)
    data.measure(load, options.turns)


def _doctor_resume(options: argparse.Namespace) -> None:
    from harness.doctor import resume

    sys.exit(
        resume.check(
            options.words,
            ranks=options.ranks,
            steps=options.steps,
            kills=options.kills,
            seed=options.seed,
            keep=options.keep,
            loss_bound_pct=options.loss_bound_pct,
        )
    )


if __name__ == "__main__":
    main()
