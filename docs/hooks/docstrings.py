"""Docstrings as Markdown: a line `name: text` begins an item of a list, whose further lines follow it."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ITEM = re.compile(r"^(\w+): (?=\S)")
_ITEMS_IN_LINE = re.compile(r"(?<=\. )(\w+): (?=\S)")  # result: the log. metrics: what summary.json holds.


def as_markdown(text: str) -> str:
    """The docstring with its described names as a list."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        if _ITEM.match(line):
            if not inside:
                lines.append("")
            inside = True
            items = _ITEMS_IN_LINE.sub(r"\n\1: ", line).split("\n")
            lines.extend(_ITEM.sub(r"- `\1`: ", item.rstrip()) for item in items)
        elif not line.strip():
            inside = False
            lines.append(line)
        else:
            lines.append(f"  {line}" if inside else line)
    return "\n".join(lines)


class Docstrings(griffe.Extension):
    """Told of every object that is read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite its docstring, if it has one."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
