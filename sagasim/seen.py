"""What a router remembers of prompts: the prefixes that were sent, and the replica that had each of them first."""

from __future__ import annotations

from sagasim.plan import Context

__all__ = ["SeenPrompts"]


class SeenPrompts:
    """The tree of all prompts sent, as cache-aware routers keep it: outputs and evictions are not known here."""

    __slots__ = ("_seen", "_sent")

    def __init__(self) -> None:
        self._seen: dict[Context, tuple[int, int]] = {}  # tokens of it that were seen, replica that saw them first
        self._sent: dict[str, list[Context]] = {}  # what to forget when a task ends

    def match(self, context: Context) -> tuple[int, int]:
        """Tokens of the longest prefix of a call's prompt seen before, and the replica that saw its end first."""
        shared = context.shared_tokens
        node = context.parent
        while node is not None:
            seen = self._seen.get(node)
            if seen is not None:
                tokens, owner = seen
                return (shared if shared < tokens else tokens), owner
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
                if known[0] < tokens:
                    seen[node] = (tokens, known[1])
                return
            seen[node] = (tokens, replica)
            if not node.named:
                sent.append(node)
            tokens = node.shared_tokens
            node = node.parent

    def forget(self, task: str) -> None:
        """The task has ended: nobody will ask for its prompts again."""
        for context in self._sent.pop(task, ()):
            self._seen.pop(context, None)
