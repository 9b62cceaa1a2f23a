"""Show one run in full on the console."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from harness.config import Config
from harness.config.load import as_text
from harness.errors import BadInput
from harness.logging.schema import Result
from harness.results import source, wandb
from harness.results.load import SILENT, Failure, LoadedRun, load_run
from harness.results.measured import Measured
from harness.results.references import line, load_references
from harness.results.show_references import show_reference
from harness.system.console import count, duration, out


def show_address(address: str) -> None:
    """Show each run at an address in full, or the published result.

    Raises:
        BadInput: there is none, it cannot be read, or W&B does not answer.
    """
    if published := source.reference(address):
        show_reference(published)
        return
    if address.startswith(wandb.ADDRESS):
        for measured in source.runs_at(address):
            show_measured(measured)
        return
    for path in _paths(address):
        if any(path.glob("*.wandb")):
            (measured,) = source.runs_at(str(path))
            show_measured(measured)
        else:
            show_run(load_run(path))


def _paths(address: str) -> list[Path]:
    try:
        return source.folders_at(address)
    except BadInput:
        return [Path(address)]  # load_run says what is wrong with it


def show_run(run: LoadedRun) -> None:
    """Show a run: settings, results, and where its time went; for a failed one, its error."""
    # Text objects, as rich would read brackets in a path or message as markup.
    out.print(Text.assemble((str(run.path), "bold"), f"  {run.state}"))
    if run.state == SILENT:
        out.print("is `running` without a sign of life; if it was killed, start it again")
    if run.result is None:
        _show_last_row(run)
    else:
        _show_result(run.result)
    if run.failure:
        _show_failure(run.failure)


def show_measured(run: Measured) -> None:
    """Show a run from W&B: settings, and the fields of its result that W&B has."""
    out.print(Text.assemble((run.address, "bold"), f"  {run.name}"))
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row(Text("config", "dim"), Text(f"{run.config.model.name}, {_settings(run.config)}"))
    for name, value in run.result.items():
        if isinstance(value, str | int | float):
            shown = f"{value:.6g}" if isinstance(value, float) else as_text(value)
            table.add_row(Text(name, "dim"), Text(shown))
    out.print(table)


def _settings(config: Config) -> str:
    return (
        f"{config.schedule.epochs} epochs, batch {config.train.global_batch}, "
        f"seed {config.run.seed}"
    )


def _show_result(result: Result) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _facts(result).items():
        table.add_row(Text(name, "dim"), Text(value))
    out.print(table)
    out.print(_time_table(result))
    for note in result.notes:
        out.print(Text(f"note: {note}"))


def _show_failure(failure: Failure) -> None:
    """Show the last lines of the log of the rank that failed first, and its error."""
    if failure.log is not None:
        out.print(f"end of {failure.log}:")
        for text in failure.last_lines:
            out.print(f"    {text}")
    where = f" on {failure.host}" if failure.host else ""
    who = "" if failure.rank is None else f"rank {failure.rank}{where} failed first: "
    out.print(Text(f"{who}{failure.message}", "red"))


def _show_last_row(run: LoadedRun) -> None:
    if not run.rows:
        out.print("no row yet")
        return
    for name, value in run.rows[-1].model_dump(exclude_none=True).items():
        out.print(f"{name:>18}  {value}")


def _facts(r: Result) -> dict[str, str]:
    ranks = count(r.world_size, "rank")
    facts = {
        "model": f"{r.model}, {r.parameters:,} parameters, {r.classes} classes",
        "top-1": f"{r.val_top1_pct:.2f} %  (top-5 {r.val_top5_pct:.2f} %, {r.val_correct1:,} right "
        f"of {r.val_images:,}; {r.protocol})",
        "best": f"{r.best_val_top1_pct:.2f} % after epoch {r.best_epoch:g}",
    }
    if r.median_last5_top1_pct is not None:
        facts["last 5 epochs"] = f"{r.median_last5_top1_pct:.2f} % median top-1"
    if r.target is not None:
        facts["target"] = r.target.in_words()
    if r.events:
        events = [f"{event.kind} at step {event.step:,}" for event in r.events]
        facts["on the way"] = ", ".join(events)
    if r.stragglers:
        facts["slow"] = "\n".join(r.stragglers)
    if r.references:
        facts["published"] = _published(r.references)
    if r.images_per_second is not None:
        if r.mfu_pct is not None and r.memory_pct is not None:
            facts["of the peak"] = (
                f"{r.mfu_pct:.1f} % of the GPUs' operations (MFU), {r.memory_pct:.1f} % of their "
                "memory bandwidth if all were fused"
            )
        facts |= {
            "images/s": f"{r.images_per_second:,.1f}  ({ranks}, waiting for data "
            "included; start-up, warm-up, validation and checkpoints not)",
            "step": f"p50 {r.step_ms_p50:.1f} ms, p95 {r.step_ms_p95:.1f} ms, "
            f"p99 {r.step_ms_p99:.1f} ms; {r.data_wait_pct:.1f} % of training waits for data",
            "energy": f"{r.energy_kj:,.1f} kJ, {r.images_per_joule:,.1f} images per joule"
            if r.energy_kj and r.images_per_joule
            else "not measured",
            "length": f"{r.epochs:g} epochs, {r.steps:,} steps, {r.images_seen:,} images",
        }
    layout = "channels_last" if r.channels_last else "NCHW"
    return facts | {
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


def _published(names: Sequence[str]) -> str:
    """Return one line for each reference that a recipe names."""
    rows = {row.id: row for row in load_references()}
    return "\n".join(
        f"{line(rows[name])} ({name})" if name in rows else f"{name}: not in references.yaml"
        for name in names
    )


def _time_table(r: Result) -> Table:
    table = Table("where the time went", "s", "%", box=None, pad_edge=False)
    for name, seconds in r.accounts_s.items():
        bar = "█" * round(40 * seconds / r.wall_s)
        table.add_row(name, duration(seconds), f"{100 * seconds / r.wall_s:5.1f} {bar}")
    return table
