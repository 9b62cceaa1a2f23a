"""Show runs and published results in full on the console, and all published results in a table."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.config.load import as_text
from harness.logging.schema import Result
from harness.results import source
from harness.results.load import SILENT, LoadedRun, load_run
from harness.results.measured import Measured
from harness.results.references import Reference, line, load_references
from harness.results.wandb import api
from harness.system.console import count, duration, out


def show_address(address: str) -> None:
    """Show each run at an address in full, or the published result.

    Raises:
        BadInput: there is none, it cannot be read, or W&B does not answer.
    """
    if published := source.reference(address):
        show_reference(published)
    elif address.startswith(api.ADDRESS):
        for measured in source.runs_at(address):
            _show_measured(measured)
    else:
        for path in source.folders_at(address):
            if source.is_of_wandb(path):
                _show_measured(*source.runs_at(str(path)))
            else:
                _show_run(load_run(path))


def show_references(rows: list[Reference]) -> None:
    """Show a table of published results."""
    table = Table(box=None, pad_edge=False)
    for name in ("reference", "metric", "value (n)", "batch", "epochs", "hardware"):
        right = name in ("value (n)", "batch", "epochs")
        table.add_column(name, no_wrap=True, justify="right" if right else "left")
    table.add_column("how", overflow="fold", min_width=24)
    for row in rows:
        spread = f" ± {row.std:g}" if row.std is not None else ""
        runs = f" ({row.n})" if row.n and row.n > 1 else ""
        gpus = f"{row.gpus} x {row.gpu or 'GPU'}" if row.gpus else row.gpu
        table.add_row(
            Text(row.id),
            row.metric,
            f"{row.value:,.10g}{spread}{runs}",
            f"{row.global_batch:,}" if row.global_batch else "",
            f"{row.epochs:g}" if row.epochs else "",
            ", ".join(filter(None, [gpus, row.precision])),
            Text("; ".join(filter(None, [row.variant, row.note, row.protocol]))),
        )
    # Lines wrap on a narrow terminal, as a truncated id could not be used in a command.
    Console(width=max(out.width, 150), soft_wrap=True, highlight=False).print(table)
    out.print(
        f"{count(len(rows), 'reference')}, top1 and top5 in %; "
        "recipe and source of one: harness show references ID"
    )


def show_reference(row: Reference) -> None:
    """Show all fields of a published result."""
    _show_facts(row.model_dump(exclude_none=True))


def _show_facts(facts: Mapping[str, object]) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in facts.items():
        table.add_row(Text(name, "dim"), Text(str(value)))
    out.print(table)


def _show_run(run: LoadedRun) -> None:
    # Text objects, as rich would read brackets in a path or message as markup.
    out.print(Text.assemble((str(run.path), "bold"), f"  {run.state}"))
    if run.state == SILENT:
        out.print("is `running` without a sign of life; if it was killed, start it again")
    if run.result is not None:
        _show_facts(_facts(run.result))
        table = Table("where the time went", "s", "%", box=None, pad_edge=False)
        for name, seconds in run.result.accounts_s.items():
            share = seconds / run.result.wall_s
            table.add_row(name, duration(seconds), f"{100 * share:5.1f} {'█' * round(40 * share)}")
        out.print(table)
        for note in run.result.notes:
            out.print(Text(f"note: {note}"))
    elif run.rows:
        for name, value in run.rows[-1].model_dump(exclude_none=True).items():
            out.print(f"{name:>18}  {value}")
    else:
        out.print("no row yet")
    if failure := run.failure:
        if failure.log is not None:
            out.print(f"end of {failure.log}:")
            for text in failure.last_lines:
                out.print(f"    {text}")
        where = f" on {failure.host}" if failure.host else ""
        who = "" if failure.rank is None else f"rank {failure.rank}{where} failed first: "
        out.print(Text(f"{who}{failure.message}", "red"))


def _show_measured(run: Measured) -> None:
    out.print(Text.assemble((run.address, "bold"), f"  {run.name}"))
    c = run.config
    about = f"{c.model.name}, {c.schedule.epochs} epochs, batch {c.train.global_batch}"
    _show_facts({"config": f"{about}, seed {c.run.seed}"} | {
        name: f"{value:.6g}" if isinstance(value, float) else as_text(value)
        for name, value in run.result.items() if isinstance(value, str | int | float)
    })  # fmt: skip


def _facts(r: Result) -> dict[str, str]:
    ranks, layout = count(r.world_size, "rank"), "channels_last" if r.channels_last else "NCHW"
    median, known = r.median_last5_top1_pct, load_references() if r.references else {}
    facts = {
        "model": f"{r.model}, {r.parameters:,} parameters, {r.classes} classes",
        "top-1": f"{r.val_top1_pct:.2f} %  (top-5 {r.val_top5_pct:.2f} %, {r.val_correct1:,} right "
        f"of {r.val_images:,}; {r.protocol})",
        "best": f"{r.best_val_top1_pct:.2f} % after epoch {r.best_epoch:g}",
        "last 5 epochs": "" if median is None else f"{median:.2f} % median top-1",
        "target": r.target.in_words() if r.target else "",
        "on the way": ", ".join(f"{event.kind} at step {event.step:,}" for event in r.events),
        "slow": "\n".join(r.stragglers),
        "published": "\n".join(
            f"{line(row)} ({name})"
            if (row := known.get(name))
            else f"{name}: not in references.yaml"
            for name in r.references
        ),
    }
    if r.images_per_second is not None:
        facts |= {
            "of the peak": f"{r.mfu_pct:.1f} % of the GPUs' operations (MFU), {r.memory_pct:.1f} % "
            "of their memory bandwidth if all were fused"
            if r.mfu_pct is not None and r.memory_pct is not None
            else "",
            "images/s": f"{r.images_per_second:,.1f}  ({ranks}, waiting for data "
            "included; start-up, warm-up, validation and checkpoints not)",
            "step": f"p50 {r.step_ms_p50:.1f} ms, p95 {r.step_ms_p95:.1f} ms, "
            f"p99 {r.step_ms_p99:.1f} ms; {r.data_wait_pct:.1f} % of training waits for data",
            "energy": f"{r.energy_kj:,.1f} kJ, {r.images_per_joule:,.1f} images per joule"
            if r.energy_kj and r.images_per_joule
            else "not measured",
            "length": f"{r.epochs:g} epochs, {r.steps:,} steps, {r.images_seen:,} images",
        }
    facts |= {
        "batch": f"{r.global_batch} = {ranks} x {r.accumulate} x {r.local_batch}",
        "computing": f"{r.device}, {r.precision}, {layout}, "
        f"{'compiled' if r.compiled else 'eager'}, {r.compute_threads} threads per rank; "
        f"{r.recompiles} recompiles, {r.graph_breaks} graph breaks",
        "data": f"{r.source}, decoded on {r.decode}, {r.loader_threads} threads per rank",
        "memory": f"{r.memory_peak_gib:.2f} GiB at its highest, rank 0"
        + (f"; DALI and others {other:.2f} GiB" if (other := r.memory_other_gib) else ""),
        "fingerprints": f"result {r.result_fingerprint}, speed {r.speed_fingerprint}",
        "W&B": r.wandb,
    }
    return {name: text for name, text in facts.items() if text}
