"""HTML in pieces. The type says which text is safe already: what is not goes through `text`."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import NewType

Markup = NewType("Markup", str)


def text(value: object) -> Markup:
    """Anything as text of a page."""
    return Markup(html.escape(printable(str(value))))


def printable(said: str) -> str:
    """The same without what neither HTML nor XML can hold, such as bytes of a name in no coding."""
    return "".join(each if each.isprintable() or each in "\n\t" else "\ufffd" for each in said)


def tag(name: str, *inside: Markup, **attributes: str | None) -> Markup:
    """An element; the attribute `class` is written `class_`, one that is None is left out."""
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{told}>{join(inside)}</{name}>")


def join(pieces: Iterable[Markup]) -> Markup:
    """One after the other."""
    return Markup("".join(pieces))


def labelled(colour: str, name: str) -> Markup:
    """A name beside its colour, which is a variable of the page."""
    return join([tag("i", class_="swatch", style=f"background: var({colour})"), text(name)])


def table(
    head: Sequence[str], rows: Iterable[Sequence[Markup]], right: Sequence[int] = (),
    class_: str | None = None,
) -> Markup:  # fmt: skip
    """A table in a box of its own, which scrolls where the page is narrower.

    Args:
        right: columns of numbers.
    """
    align = ["number" if column in right else None for column in range(len(head))]
    titles = [
        tag("th", text(name), scope="col", class_=side)
        for name, side in zip(head, align, strict=True)
    ]
    body = [
        tag("tr", *(tag("td", cell, class_=side) for cell, side in zip(row, align, strict=True)))
        for row in rows
    ]
    inside = tag("table", tag("thead", tag("tr", *titles)), tag("tbody", *body), class_=class_)
    return tag("div", inside, class_="scroll", role="region", tabindex="0", aria_label="table")
