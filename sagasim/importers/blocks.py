"""Longest common prefixes of lists of block ids, exact, within sessions and across them."""

from __future__ import annotations

from sagasim.core import Prefix

__all__ = ["BlockTrie", "Node"]


class Node:
    """The end of a piece of a path in the tree.

    ids: of the piece above; depth: blocks from the root; covered: most tokens any prompt through here has of them.
    session, call, call_covers: the call of the session that came last whose prompt covers most of them, latest first.
    shared: prompts of at least two sessions pass here.
    """

    __slots__ = ("call", "call_covers", "children", "covered", "depth", "ids", "name", "parent", "session", "shared")

    def __init__(self, ids: list[int], parent: Node | None, session: int) -> None:
        self.ids = ids
        self.parent = parent
        self.depth: int = len(ids) + (parent.depth if parent else 0)
        self.session = session
        self.call = -1
        self.call_covers = 0
        self.covered = 0
        self.shared = False
        self.name = ""
        self.children: dict[int, Node] = {}


class BlockTrie:
    """A radix tree of all prompts. Sessions are added one after the other, each in the order of its calls."""

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self._root = Node([], None, -1)
        self._names = 0

    def add(self, ids: list[int], prompt: int, session: int, call: int) -> tuple[int, int, Node | None]:
        """Add a prompt of which the ids cover `prompt` tokens.

        Returns (the earlier call of its session that it shares most with, tokens shared, its end);
        (-1, 0, ...) where no earlier call of the session shares anything. The end is where its path ends or runs within
        the last piece; None without ids.
        """
        node, at, size = self._root, 0, len(ids)
        found, shared = -1, 0
        while at < size:
            child = node.children.get(ids[at])
            if child is None:
                return found, shared, self._append(node, ids, at, prompt, session, call)
            piece = child.ids
            if ids[at : at + len(piece)] != piece:
                child = self._split(child, _common(ids, at, piece))
            node, at = child, child.depth
            covers = at * self.block_tokens if at < size else prompt
            if node.session == session:
                found, shared = node.call, min(covers, node.call_covers)
            else:
                node.session, node.shared, node.call_covers = session, True, 0
            if covers >= node.call_covers:
                node.call, node.call_covers = call, covers
            if covers > node.covered:
                node.covered = covers
        return found, shared, node if size else None

    def _split(self, node: Node, blocks: int) -> Node:
        """Cut the piece of `node` after `blocks`; returns the upper part, whose prompts all cover it in full."""
        parent = node.parent or self._root
        upper = Node(node.ids[:blocks], parent, node.session)
        parent.children[node.ids[0]] = upper
        node.ids = node.ids[blocks:]
        node.parent = upper
        upper.children[node.ids[0]] = node
        upper.shared = node.shared
        upper.call = node.call
        upper.covered = upper.depth * self.block_tokens
        upper.call_covers = upper.covered if node.call_covers else 0
        return upper

    def _append(self, node: Node, ids: list[int], at: int, prompt: int, session: int, call: int) -> Node:
        """Hang the unseen end of a prompt below `node`; a leaf that only this session knows grows instead."""
        if node.parent is not None and not node.children and not node.shared and node.session == session:
            node.ids += ids[at:]
            node.depth = len(ids)
        else:
            child = Node(ids[at:], node, session)
            node.children[ids[at]] = child
            node = child
        node.call, node.call_covers, node.covered = call, prompt, prompt
        return node

    def shared_across(self, end: Node | None, prompt: int) -> tuple[Node | None, int]:
        """(deepest node on a path that prompts of other sessions pass, tokens of `prompt` it covers)."""
        node = end
        while node is not None and not node.shared:
            node = node.parent
        return (node, min(node.covered, prompt)) if node is not None else (None, 0)

    def declare(self, node: Node, prefixes: dict[str, Prefix]) -> str:
        """Name of the prefix that ends at a node; adds it and those it extends to the prefixes of a task."""
        chain = []
        while node.parent is not None:
            chain.append(node)
            node = node.parent
        below: str | None = None
        kept = 0
        for step in reversed(chain):
            if not step.name:
                self._names += 1
                step.name = f"blocks/{self._names}"
            if step.name not in prefixes:
                prefixes[step.name] = Prefix(step.name, step.covered - kept, below, kept)
            below, kept = step.name, step.covered
        return below or ""


def _common(ids: list[int], at: int, piece: list[int]) -> int:
    """Blocks at the start of `piece` that equal ids[at:]; at least one, fewer than all."""
    low, high = 1, min(len(piece), len(ids) - at)
    while low < high:
        middle = (low + high + 1) // 2
        if ids[at + low : at + middle] == piece[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
