"""From matplotlib's SVG to one that stands in a page among others."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping

from harness.results.page.markup import Markup

DECIMALS = re.compile(r"(\.\d\d)\d+")
"""A hundredth of a pixel is enough."""
FONT = re.compile(r" ?font-family: [^;]*;")
REFERENCE = re.compile(r"(?:url\()?#(\w+)\)?")
COLOUR = re.compile(r"#[0-9a-f]{6}")


def inline(svg: str, key: str, told: str, colours: Mapping[str, str]) -> Markup:
    """The same picture in the page's letters and colours, as wide as there is room.

    Args:
        key: what its ids begin with.
        told: what it shows, for those who cannot see it.
        colours: those drawn with -> the page's variables.
    """
    root = ET.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if _name(child.tag) in ("metadata", "style"):
                parent.remove(child)
    used = {
        found[1]
        for element in root.iter()
        for name, value in element.items()
        if _name(name) in ("href", "clip-path") and (found := REFERENCE.fullmatch(value))
    }
    for element in root.iter():
        element.tag = _name(element.tag)
        element.attrib = {
            name: changed
            for name, value in ((_name(name), value) for name, value in element.items())
            if (changed := _changed(name, value, key, used, colours)) is not None
        }
        if element.tag != "text" and not (element.text or "").strip():
            element.text = None
        element.tail = None
    root.attrib = {"viewBox": root.get("viewBox", ""), "role": "img", "aria-label": told}
    return Markup(ET.tostring(root, encoding="unicode"))


def _name(name: str) -> str:
    """Without its namespace: in HTML an inline picture has that anyway."""
    return name.rpartition("}")[2]


def _changed(
    name: str, value: str, key: str, used: set[str], colours: Mapping[str, str]
) -> str | None:
    """An attribute's new value; none: it is left out."""
    if name == "id":
        return f"{key}-{value}" if value in used else None
    if name in ("href", "clip-path"):
        return value.replace("#", f"#{key}-")
    if name == "style":
        value = COLOUR.sub(lambda found: _variable(found[0], colours), FONT.sub("", value))
        return value or None
    if name == "transform" and value.startswith("rotate(-0 "):
        return None
    if name in ("d", "x", "y", "width", "height"):
        return " ".join(DECIMALS.sub(r"\1", value).split())
    return value


def _variable(colour: str, colours: Mapping[str, str]) -> str:
    return f"var({colours[colour]})" if colour in colours else colour
