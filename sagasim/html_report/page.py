"""Elements of the page. Texts are data: the serialiser escapes them, whatever they hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

__all__ = ["MARK", "Cell", "Child", "Element", "element", "figure", "section", "table", "whole"]

MARK = "sagasim report"  # in the head of every page written here
Element = ElementTree.Element
Child = Element | str
_LONG = 28  # letters of a text from which on it may be broken
_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Cell:
    """What a cell of a table says, below it in small, what it is sorted by, and its class."""

    text: str
    small: str = ""
    value: float | None = None
    kind: str = ""


def element(tag: str, *children: Child, **attributes: str) -> Element:
    """An element; an underscore at the end of an attribute's name is left out, others are hyphens."""
    names = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    made = ElementTree.Element(tag, names)
    last: Element | None = None
    for child in children:
        if not isinstance(child, str):
            made.append(child)
            last = child
        elif last is None:
            made.text = (made.text or "") + child
        else:
            last.tail = (last.tail or "") + child
    return made


def section(title: str, *children: Child) -> Element:
    return element("section", element("h2", title), *children)


def figure(drawing: Element, *caption: Child) -> Element:
    return element("figure", drawing, element("figcaption", *caption))


def table(heads: Sequence[str], rows: Iterable[Sequence[Cell]], *, texts: int, label: str) -> Element:
    """A table that is sorted by a click on a head. texts: columns of text, the first ones; label: what it is."""
    buttons = [
        element(
            "th", element("button", *_breakable(head), type="button"), scope="col", class_="text" if n < texts else ""
        )
        for n, head in enumerate(heads)
    ]
    lines = [element("tr", *(_cell(cell, head=n == 0) for n, cell in enumerate(row))) for row in rows]
    body = element("table", element("thead", element("tr", *buttons)), element("tbody", *lines), class_="sortable")
    return element("div", body, class_="scroll", role="region", aria_label=label, tabindex="0")


def _breakable(head: str) -> Iterator[Child]:
    """A head that may go on in a new line after an underscore."""
    first, *others = head.split("_")
    yield first
    for part in others:
        yield "_"
        yield element("wbr")
        yield part


def _cell(cell: Cell, *, head: bool) -> Element:
    parts: list[Child] = [cell.text]
    if cell.small:
        parts.append(element("small", cell.small))
    kinds = [cell.kind, "long" if len(cell.text) > _LONG else ""]
    attributes = {"class": " ".join(filter(None, kinds))} if any(kinds) else {}
    if cell.value is not None:
        attributes["data-value"] = repr(cell.value)
    made = element("th" if head else "td", *parts)
    made.attrib.update(attributes | ({"scope": "row"} if head else {}))
    return made


def whole(title: str, *body: Child) -> bytes:
    """The page: HTML5 in UTF-8, with its style and script inside."""
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="generator", content=MARK),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", style),
    )
    root = element("html", head, element("body", element("main", *body), element("script", script)), lang="en")
    text = ElementTree.tostring(root, encoding="unicode", method="html")
    return f"<!DOCTYPE html>\n{text}\n".encode()
