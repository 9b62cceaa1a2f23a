"""Show published results on the console: all in a table, or one in full."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.results.references import Reference
from harness.system.console import count, out


def show_references(rows: list[Reference]) -> None:
    """Show a table of published results."""
    table = Table(box=None, pad_edge=False)
    for name in ("reference", "metric", "value (n)", "batch", "epochs", "hardware"):
        table.add_column(name, no_wrap=True)
    for column in table.columns[2:5]:
        column.justify = "right"
    table.add_column("how", overflow="fold", min_width=24)
    for row in rows:
        table.add_row(
            Text(row.id),
            row.metric,
            _value(row),
            f"{row.global_batch:,}" if row.global_batch else "",
            f"{row.epochs:g}" if row.epochs else "",
            _hardware(row),
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
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in row.model_dump(exclude_none=True).items():
        table.add_row(Text(name, "dim"), Text(str(value)))
    out.print(table)


def _value(row: Reference) -> str:
    spread = f" ± {row.std:g}" if row.std is not None else ""
    runs = f" ({row.n})" if row.n and row.n > 1 else ""
    return f"{row.value:,.10g}{spread}{runs}"


def _hardware(row: Reference) -> str:
    parts = [f"{row.gpus} x {row.gpu or 'GPU'}" if row.gpus else row.gpu, row.precision]
    return ", ".join(filter(None, parts))
