"""What a router remembers of prompts: the prefixes that were sent, and the replica that had each of them first."""

from __future__ import annotations

from sagasim.plan import Context

__all__ = ["SeenPrompts"]


class SeenPrompts:
    """The tree of all prompts sent, as cache-aware routers keep it: outputs and evictions are not known here."""

    __slots__ = ("_seen", "_sent")

    def __init__(self) -> None:
        self._seen: dict[
            Context, list[tuple[int, int]]
        ] = {}  # of a path: up to so many tokens, seen first by a replica
        self._sent: dict[str, list[Context]] = {}  # what to forget when a task ends

    def match(self, context: Context) -> tuple[int, int]:
        """Tokens of the longest prefix of a call's prompt seen before, and the replica that saw its end first."""
        shared = context.shared_tokens
        node = context.parent
        while node is not None:
            seen = self._seen.get(node)
            if seen is not None:
                if shared < seen[-1][0]:
                    for tokens, owner in seen:
                        if shared <= tokens:
                            return shared, owner
                return seen[-1]
            shared = node.shared_tokens
            node = node.parent
        return 0, 0

    def insert(self, task: str, context: Context, prompt_tokens: int, replica: int) -> None:
        """Remember a prompt that goes to a replica; of its ancestors, what nobody has sent yet."""
        seen = self._seen
        sent = self._sent.get(task)
        if sent is None:
            sent = self._sent[task] = []
        node: Context | None = context
        tokens = prompt_tokens
        while node is not None:
            known = seen.get(node)
            if known is not None:
                if known[-1][0] < tokens:  # of an output, or of a prefix, more than anybody sent before
                    known.append((tokens, replica))
                return
            seen[node] = [(tokens, replica)]
            if not node.named:
                sent.append(node)
            tokens = node.shared_tokens
            node = node.parent

    def forget(self, task: str) -> None:
        """The task has ended: nobody will ask for its prompts again."""
        for context in self._sent.pop(task, ()):
            self._seen.pop(context, None)
