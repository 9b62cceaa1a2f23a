"""The consoles, tables, and numbers as text."""

from rich.console import Console
from rich.table import Table

out = Console(soft_wrap=True, highlight=False, markup=False)
# For tables: on a narrow terminal lines wrap rather than cells, so that numbers stay readable.
wide = Console(width=max(out.width, 130), soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


def right_table(*head: str) -> Table:
    """Return an empty table with these headings, whose columns but the first are right-aligned."""
    table = Table(*head)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def duration(seconds: float) -> str:
    """Format seconds for people: `8 s`, `3 min 20 s`, `2 h 05 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def count(number: int, what: str) -> str:
    """Format a number with its noun, singular or plural: `1 rank`, `8 ranks`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
