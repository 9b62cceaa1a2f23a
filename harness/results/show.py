"""Showing runs on the console: one in full, or many in a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from harness.console import count, duration, out
from harness.record.schema import Result
from harness.results.load import Failure, LoadedRun
from harness.results.references import line, load_shelf


def show_run(run: LoadedRun) -> None:
    """One run: what it was, what came out, where its time went."""
    # Text, and no markup: a path or a message may hold brackets.
    out.print(Text.assemble((str(run.path), "bold"), f"  {run.state}"))
    if run.result is None:
        _show_last_row(run)
    else:
        _show_result(run.result)
    if run.failure:
        _show_failure(run.failure)


def show_runs(runs: list[LoadedRun]) -> None:
    """A line for each run."""
    table = Table("run", "state", "epoch", "top-1 %", "images/s", "model", "devices")
    for column in table.columns[2:5]:
        column.justify = "right"
    for run in runs:
        last = run.rows[-1] if run.rows else None
        scored = [row for row in run.rows if row.val_top1_pct is not None]
        speeds = [row.images_per_second for row in run.rows if row.images_per_second is not None]
        result = run.result
        speed = result.images_per_second if result else (speeds[-1] if speeds else None)
        table.add_row(
            Text(run.path.name),
            Text(run.state),
            f"{last.epoch:.1f}" if last else "",
            f"{scored[-1].val_top1_pct:.2f}" if scored else "",
            f"{speed:,.0f}" if speed else "",
            result.model if result else "",
            f"{result.world_size} x {result.device}" if result else "",
        )
    out.print(table)


def _show_result(result: Result) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _facts(result).items():
        table.add_row(Text(name, "dim"), Text(value))
    out.print(table)
    out.print(_time_table(result))
    for note in result.notes:
        out.print(Text(f"note: {note}"))


def _show_failure(failure: Failure) -> None:
    """Who failed first and why, under the end of what that rank said."""
    if failure.log is not None:
        out.print(f"end of {failure.log}:")
        for words in failure.last_lines:
            out.print(f"    {words}")
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
        facts["on the way"] = ", ".join(f"{each.kind} at step {each.step:,}" for each in r.events)
    if r.references:
        facts["published"] = _published(r.references)
    if r.images_per_second is not None:
        facts |= {
            "images/s": f"{r.images_per_second:,.1f}  ({ranks}, waiting for data "
            "included; start-up, warm-up, validation and checkpoints not)",
            "step": f"p50 {r.step_ms_p50:.1f} ms, p95 {r.step_ms_p95:.1f} ms, "
            f"p99 {r.step_ms_p99:.1f} ms; {r.data_wait_pct:.1f} % of training waits for data",
            "length": f"{r.epochs:g} epochs, {r.steps:,} steps, {r.images_seen:,} images",
        }
    layout = "channels_last" if r.channels_last else "NCHW"
    return facts | {
        "batch": f"{r.global_batch} = {ranks} x {r.accumulate} x {r.local_batch}",
        "computing": f"{r.device}, {r.precision}, {layout}, "
        f"{'compiled' if r.compiled else 'eager'}, {r.compute_threads} threads per rank; "
        f"{r.recompiles} recompiles, {r.graph_breaks} graph breaks",
        "data": f"{r.source}, decoded on {r.decode}, {r.loader_threads} threads per rank",
        "memory": f"{r.memory_peak_gib:.2f} GiB at its highest, rank 0",
        "fingerprints": f"result {r.result_fingerprint}, speed {r.speed_fingerprint}",
        "W&B": r.wandb,
    }


def _published(names: Sequence[str]) -> str:
    """The rows that a recipe names, a line each."""
    shelf = {row.id: row for row in load_shelf()}
    return "\n".join(
        f"{line(shelf[name])} ({name})" if name in shelf else f"{name}: not on the shelf"
        for name in names
    )


def _time_table(r: Result) -> Table:
    table = Table("where the time went", "s", "%", box=None, pad_edge=False)
    for name, seconds in r.accounts_s.items():
        bar = "█" * round(40 * seconds / r.wall_s)
        table.add_row(name, duration(seconds), f"{100 * seconds / r.wall_s:5.1f} {bar}")
    return table
