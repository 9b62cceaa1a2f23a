"""The verb `harness show`: show runs, networks and published results."""

from typer import Argument, Option

from harness.commands.parser import group, verb
from harness.errors import BadInput
from harness.system.console import out

app = group()

DESCRIPTION = """\
Show a run, a table of all runs, a network, or published results.

  harness show runs/a-s0                         one run in full, also an unfinished one
  harness show wandb:team/bench/RUN_ID           a run from W&B; also an offline W&B folder
  harness show ref:goyal2017-resnet50-b256       a published result
  harness show runs                              all runs in runs/, a line each
  harness show runs /shared/runs 'old/a-s*'      runs of other folders, or some runs
  harness show runs --only model=resnet50 --only state=finished --sort top1 --reverse
  harness show runs --only 'train.global_batch=8*' --only seed=0
  harness show runs --markdown > history.md      as a table to paste
  harness show model resnet50 --layers           a network
  harness show references --model resnet50       published results

In the table of runs, `left` is the time that a run still needs at its speed so far; `<` means that
it may stop earlier, at a target. A run is `silent` if its state is `running` but it has given no
sign of life for two minutes: it was killed, or its disk hangs. Runs that cannot be read are named
on stderr."""


@verb(app, DESCRIPTION)
def show(
    what: str = Argument(metavar="WHAT",
        help="`runs`, `model`, `references`, or a run: folder, glob, wandb:..., ref:ID"),
    names: list[str] = Argument([], metavar="NAME",
        help="runs: folders of runs, run folders or globs (default runs/); model: its name; "
        "references: ids, to show them in full"),
    only: list[str] = Option([], metavar="KEY=VALUE",
        help="runs: with this state, model, device, seed or section.key setting; * and ? are "
        "wildcards; may be repeated, then all must hold"),
    sort: str | None = Option(None, metavar="KEY",
        help="runs: by name (default), state, epoch, top1, images_per_second, left or active: "
        "ascending, unknown last"),
    reverse: bool = Option(False, "--reverse", help="runs: sort in descending order"),
    markdown: bool = Option(False, "--markdown", help="runs: print a Markdown table"),
    layers: bool = Option(False, "--layers", help="model: every layer, not every stage"),
    image_px: int = Option(0, show_default="224, or 32", help="model: input side, px"),
    classes: int = Option(0, show_default="1000, or 10", help="model: classes"),
    model: str | None = Option(None, metavar="NAME", help="references: only for this network"),
    metric: str | None = Option(None, help="references: only of this kind, such as top1"),
) -> None:  # fmt: skip
    """Show a run, a table of runs, a network, or published results."""
    if what != "references" and (model or metric):
        raise BadInput(f"show {what}: --model and --metric belong to `show references`")
    if what != "runs" and (only or sort or reverse or markdown):
        flags = "--only, --sort, --reverse and --markdown"
        raise BadInput(f"show {what}: {flags} belong to `show runs`")
    if what == "model":
        _show_model(names, image_px, classes, layers=layers)
    elif what == "references":
        from harness.results import references
        from harness.results.show import show_reference, show_references

        known = references.load_references()
        for name in names:
            show_reference(references.find(known, name))
        if not names:
            show_references(references.pick(known, model=model, metric=metric))
    elif what == "runs":
        from harness.results import show_runs

        show_runs.show_runs(
            names or ["runs"], only=only, sort=sort or "name", reverse=reverse, markdown=markdown
        )
    elif names:
        raise BadInput(f"show {what}: takes one run folder; for several, use: show runs")
    else:
        from harness.results.show import show_address

        show_address(what)


def _show_model(names: list[str], px: int, classes: int, *, layers: bool) -> None:
    from harness.models.summary import named, print_model
    from harness.models.zoo import MODELS

    if len(names) != 1:
        raise BadInput("show model: name one network, such as resnet50")
    model = named(names[0])
    network = MODELS[model.name]
    print_model(model, px or network.image_px, classes or network.classes, layers, out)
