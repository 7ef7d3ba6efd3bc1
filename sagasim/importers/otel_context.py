"""What the prompts of LLM spans share: by their messages where they were recorded, else by their lengths."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sagasim.core import Prefix
from sagasim.importers.otel_spans import Message, Span

__all__ = ["Contexts", "system_prefixes"]

REMEMBERED = 8  # calls at one place of the tree of messages, and of one agent; the latest are nearest to what comes


@dataclass(slots=True)
class _Made:
    """A call that later ones may extend. bit, behind: itself and what it runs after, as sets of calls."""

    span: Span
    name: str
    bit: int
    behind: int
    characters: int

    @property
    def context(self) -> int:
        """Tokens that an agent which only appends repeats."""
        return self.span.prompt + max(max(self.span.output, 1) - self.span.hidden, 0)


@dataclass(slots=True)
class _Node:
    children: dict[int, _Node] = field(default_factory=dict)
    calls: list[_Made] = field(default_factory=list)


def system_prefixes(tasks: Iterable[Sequence[Span]]) -> dict[int, Prefix]:
    """Hash of the leading instructions of a prompt -> the prefix that all tasks with the same ones share.

    Its tokens are the least that any of these prompts gives them, in proportion to characters.
    """
    sizes: dict[int, int] = {}
    for spans in tasks:
        for span in spans:
            key, characters = _leading(span.messages)
            if characters:
                size = max(_share(span, characters), 1)
                sizes[key] = min(size, sizes.get(key, size))
    return {key: Prefix(f"instructions/{number}", size) for number, (key, size) in enumerate(sizes.items(), start=1)}


def _leading(messages: Sequence[Message]) -> tuple[int, int]:
    """(hash, characters) of the instructions that a prompt begins with."""
    key = characters = 0
    for message in messages:
        if message.role != "system":
            break
        key = hash((key, message.key))
        characters += message.characters
    return key, characters


def _share(span: Span, characters: int) -> int:
    whole = sum(message.characters for message in span.messages)
    return span.prompt * characters // whole if whole else 0


class Contexts:
    """The contexts of one task, call after call."""

    def __init__(self, prefixes: dict[int, Prefix]) -> None:
        self._prefixes = prefixes
        self._used: dict[str, Prefix] = {}
        self._root = _Node()
        self._recent: dict[str, list[_Made]] = {}  # agent -> its latest calls

    def used(self) -> tuple[Prefix, ...]:
        return tuple(self._used.values())

    def add(self, span: Span, name: str, agent: str, bit: int, behind: int) -> tuple[str | None, int]:
        """(what the prompt of a call extends, tokens it keeps); remembers the call."""
        made = _Made(span, name, bit, behind, sum(message.characters for message in span.messages))
        extends, keep = self._by_messages(made) if span.messages else self._by_length(made, agent)
        if span.messages:
            key, characters = _leading(span.messages)
            prefix = self._prefixes.get(key) if characters else None
            if prefix is not None and min(prefix.new_tokens, span.prompt) > keep:
                self._used[prefix.name] = prefix
                extends, keep = prefix.name, min(prefix.new_tokens, span.prompt)
        recent = self._recent.setdefault(agent, [])
        recent.append(made)
        del recent[:-REMEMBERED]
        return (extends, keep) if keep else (None, 0)

    def _by_length(self, made: _Made, agent: str) -> tuple[str | None, int]:
        last = next((one for one in reversed(self._recent.get(agent, [])) if one.bit & made.behind), None)
        if last is None:
            return None, 0
        prompt = made.span.prompt
        if prompt >= last.span.prompt:
            return last.name, min(prompt, last.context)
        return last.name, min(made.span.cached, prompt)

    def _by_messages(self, made: _Made) -> tuple[str | None, int]:
        """The call whose messages a prompt repeats furthest, and how many of its tokens that are.

        A prompt that is repeated as a whole counts as it was counted; where an answer follows it, that is its output.
        """
        node = self._root
        path: list[tuple[_Node, int]] = []
        characters = 0
        for message in made.span.messages:
            node = node.children.setdefault(message.key, _Node())
            characters += message.characters
            path.append((node, characters))
        best: tuple[str | None, int] = (None, 0)
        for depth in range(len(path), 0, -1):
            node, characters = path[depth - 1]
            found = next((one for one in reversed(node.calls) if not one.behind & ~made.behind), None)
            if found is not None:
                best = found.name, self._kept(made, found, depth, characters)
                break
        for node, _ in path:
            node.calls.append(made)
            del node.calls[:-REMEMBERED]
        return best

    def _kept(self, made: _Made, found: _Made, depth: int, characters: int) -> int:
        prompt, messages = made.span.prompt, made.span.messages
        if depth < len(found.span.messages):
            return min(prompt, _share(found.span, characters))
        answered = depth < len(messages) and messages[depth].role in ("assistant", "model", "ai")
        return min(prompt, found.context if answered and found.bit & made.behind else found.span.prompt)
