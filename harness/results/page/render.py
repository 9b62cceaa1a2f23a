"""Render page.html to one file that contains page.css and all pictures."""

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
    """A name with a color mark; `color` is a variable of page.css."""

    color: str
    name: str

    def __html__(self) -> str:
        return html('<i class="swatch" style="background: var(--{})"></i>{}', *self)


class Picture(NamedTuple):
    """An SVG with a text for screen readers."""

    svg: str
    label: str


class Table(NamedTuple):
    """A table whose cells are text or have `__html__`; `right` lists right-aligned columns."""

    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    right: Sequence[int] = ()


class Figure(NamedTuple):
    """A picture with its title, legend, and a note and table below it."""

    title: str
    picture: Picture
    legend: Sequence[Swatch] = ()
    note: str = ""
    table: Table | None = None


class Page(NamedTuple):
    """The data of page.html."""

    title: str
    about: str  # a line below the title
    tab: str  # the title of the browser's tab
    figures: Mapping[str, Sequence[Figure]]  # by the title of their section, which may be empty
    tables: Mapping[str, Table]  # likewise
    points: Sequence[str] = ()
    judgments: Sequence[Mapping[str, Any]] = ()  # as page.py returns them
    reports: Sequence[Mapping[str, Any]] = ()  # likewise
    differences: Sequence[Table] = ()  # for each two sides
    foot: Sequence[str] = ()


def render(page: Page) -> str:
    """Return the page as HTML, with text escaped."""
    number = itertools.count()

    def inline(svg: str) -> Markup:
        ids = rf"\1p{next(number)}-"  # unique in the page
        return Markup(TAG.sub(lambda tag: ID.sub(ids, tag[0]), svg))

    templates = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined,
        finalize=_text, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return templates.get_template("page.html").render(page._asdict(), inline=inline)


def html(form: str, *values: object) -> Markup:
    """Return a piece of HTML with the values, escaped, at its `{}`."""
    return Markup(form).format(*map(_text, values))


def printable(text: str) -> str:
    """Return the text with U+FFFD for what HTML and XML cannot hold, such as invalid UTF-8."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _text(value: object) -> object:
    if hasattr(value, "__html__"):
        return value
    return "-" if value is None else printable(str(value))
