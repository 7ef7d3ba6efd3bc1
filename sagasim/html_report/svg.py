"""A figure of matplotlib as an element of a page: its text stays text, and its bytes depend on what it shows alone."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["drawing", "to_svg"]

_PIXELS_A_POINT = 1.4
_NAMESPACE = re.compile(r"^\{.*\}")
_DECIMALS = re.compile(r"-?\d+\.\d{3,}")
_GEOMETRY = ("d", "x", "y", "transform", "width", "height", "points")
_REFERENCE = re.compile(r"(^|url\()#([\w-]+)")


@contextmanager
def drawing() -> Iterator[None]:
    """Settings of matplotlib under which figures of the page are made and saved.

    Labels are data: a dollar sign begins no formula. A letter that matplotlib's font lacks is no matter for a warning,
    since the reader's browser has its own fonts.
    """
    import matplotlib as mpl

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "sagasim",
        "text.parse_math": False,
        "font.size": 9,
    }
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def to_svg(figure: Figure, alt: str, prefix: str) -> ElementTree.Element:
    """The figure, described by `alt` to who cannot see it; prefix: of its ids, which are then the page's alone."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    FigureCanvasSVG(figure)
    drawn = io.BytesIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(drawn, format="svg", bbox_inches="tight", pad_inches=0.06, metadata=nothing)
    root = ElementTree.fromstring(drawn.getvalue())  # noqa: S314 - written just now, above
    for parent in list(root.iter()):
        for child in list(parent):
            if _NAMESPACE.sub("", str(child.tag)) in ("metadata", "style"):  # a style would be that of the whole page
                parent.remove(child)
    used = {name for one in root.iter() for value in one.attrib.values() for _, name in _REFERENCE.findall(value)}
    for one in root.iter():
        one.tag = _NAMESPACE.sub("", str(one.tag))
        one.attrib = dict(_attributes(one.attrib, used, prefix))
        one.text, one.tail = (one.text if one.tag == "text" or one.tag == "tspan" else None), None
    points = float(root.attrib["viewBox"].split()[2])
    wide = f"max-width:{_PIXELS_A_POINT * points:.0f}px"  # so that all figures have letters of one size
    root.attrib = {"viewBox": root.attrib["viewBox"], "style": wide, "role": "img", "aria-label": alt}
    return root


def _attributes(given: dict[str, str], used: set[str], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in given.items():
        name = _NAMESPACE.sub("", key)
        if name == "id":
            if value in used:
                yield name, prefix + value
        elif name == "href" or "url(#" in value:
            yield name, _REFERENCE.sub(lambda found: f"{found[1]}#{prefix}{found[2]}", value)
        elif name in _GEOMETRY:
            yield name, _DECIMALS.sub(lambda found: f"{float(found[0]):.2f}", value)
        else:
            yield name, value
