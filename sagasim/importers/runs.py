"""Longest common prefixes of sequences of block ids that are run-length coded: [[first, count], ...]."""

from __future__ import annotations

__all__ = ["RunTrie"]

Run = tuple[int, int]


class _Node:
    """The end of one run on a path; `latest` is the last call that passed it."""

    __slots__ = ("children", "count", "first", "latest")

    def __init__(self, first: int, count: int, latest: int) -> None:
        self.first = first
        self.count = count
        self.latest = latest
        self.children: dict[int, _Node] = {}

    def split(self, count: int) -> None:
        """Cut the run after `count` blocks; this node becomes the upper part."""
        lower = _Node(self.first + count, self.count - count, self.latest)
        lower.children = self.children
        self.count = count
        self.children = {lower.first: lower}


class RunTrie:
    """A radix tree of all sequences added so far. A run continues in a child whose first id is the next number."""

    def __init__(self) -> None:
        self._root = _Node(-1, 0, -1)

    def add(self, runs: list[list[int]], call: int) -> tuple[int, int]:
        """Add the sequence of `call`; returns (latest call before it with the longest common prefix, its blocks).

        (-1, 0) where nothing is shared. Runs need not be maximal: [[1, 2], [3, 4]] is the same as [[1, 6]].
        """
        node, found, shared = self._root, -1, 0
        for position, (first, count) in enumerate(runs):
            start, left = first, count
            while left:
                child = node.children.get(start)
                if child is None:
                    self._append(node, start, left, runs[position + 1 :], call)
                    return found, shared
                common = min(left, child.count)
                found, shared = child.latest, shared + common
                if common < child.count:
                    child.split(common)
                child.latest = call
                node, start, left = child, start + common, left - common
        return found, shared

    def _append(self, node: _Node, first: int, count: int, rest: list[list[int]], call: int) -> None:
        """Hang the unseen part of a sequence below `node`; a leaf whose run goes on simply grows."""
        if node is not self._root and not node.children and node.first + node.count == first:
            node.count += count
        else:
            node.children[first] = node = _Node(first, count, call)
        for first, count in rest:
            if not count:
                continue
            if node.first + node.count == first:
                node.count += count
            else:
                node.children[first] = node = _Node(first, count, call)
