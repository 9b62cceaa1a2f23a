"""A page from its template page.html: one file with page.css and all pictures in it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

FOLDER = Path(__file__).parent
TAG = re.compile("<[^>]+>")
ID = re.compile(r'( id="|href="#|url\(#)')


class Swatch(NamedTuple):
    """A name with its color, a variable of page.css."""

    color: str
    name: str

    def __html__(self) -> str:
        return html('<i class="swatch" style="background: var(--{})"></i>{}', *self)


class Picture(NamedTuple):
    """An SVG, and what it shows, for those who cannot see it."""

    svg: str
    label: str


class Table(NamedTuple):
    """Cells are text, or what has `__html__`; columns of numbers are aligned to the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    right: Sequence[int] = ()


class Figure(NamedTuple):
    """A picture with what stands above and below it."""

    title: str
    picture: Picture
    legend: Sequence[Swatch] = ()
    note: str = ""
    table: Table | None = None


class Page(NamedTuple):
    """All that page.html shows, in its order.

    `about` is a line below the title, `tab` the title of the browser's tab; figures and tables
    come by the title of their section, or ""; judgments and reports are made in verdicts.py and
    page.py, `differences` has a table for each two sides.
    """

    title: str
    about: str
    tab: str
    figures: Mapping[str, Sequence[Figure]]
    tables: Mapping[str, Table]
    points: Sequence[str] = ()
    judgments: Sequence[Mapping[str, Any]] = ()
    reports: Sequence[Mapping[str, Any]] = ()
    differences: Sequence[Table] = ()
    foot: Sequence[str] = ()


def render(page: Page) -> str:
    """The page as HTML; what is text in it is escaped."""
    number = itertools.count()

    def inline(svg: str) -> Markup:
        """The SVG with ids of its own, as there are others in the page."""
        ids = rf"\1p{next(number)}-"
        return Markup(TAG.sub(lambda tag: ID.sub(ids, tag[0]), svg))

    pages = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined,
        finalize=_text, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return pages.get_template("page.html").render(page._asdict(), inline=inline)


def html(form: str, *values: object) -> Markup:
    """A piece of HTML with values as text at its `{}`."""
    return Markup(form).format(*map(_text, values))


def printable(text: str) -> str:
    """The text without what neither HTML nor XML can hold, such as bytes that are no UTF-8."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _text(value: object) -> object:
    """What stands in a page for a value: HTML as it is, anything else to be escaped."""
    if hasattr(value, "__html__"):
        return value
    return "-" if value is None else printable(str(value))
