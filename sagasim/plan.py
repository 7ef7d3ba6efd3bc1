"""A task made ready for replay: contexts as a tree, cut into branches, and calls as chains.

Every prompt is a path in a tree of tokens. Two blocks of two prompts are the same exactly when the paths agree up to
the end of the block. A call appends to a path (`Context`, what policies may see); replicas keep residency by `Branch`,
a stretch of path that many calls share, so that a conversation of a thousand calls is one entry.

Branches follow the heaviest child (heavy-path decomposition by number of calls), so that a path crosses at most
log2(calls) + 1 branches however often the conversation forks. The decomposition knows the whole task: it is
representation only and never shown to a policy.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Final

from sagasim.core import Call, Prefix, Task
from sagasim.errors import TraceError
from sagasim.units import BLOCK_TOKENS

__all__ = ["Branch", "Context", "PlannedCall", "PlannedTask", "Prefixes", "plan_task"]

ENDLESS: Final = 1 << 62


class Context:
    """A prompt as policies see it: its first `shared_tokens` tokens are its parent's, `prompt_tokens` known when sent.

    The parent is the context that wrote the last of the shared tokens; without one nothing is shared.
    """

    __slots__ = ("named", "parent", "prompt_tokens", "shared_tokens")

    def __init__(self, parent: Context | None, shared_tokens: int, prompt_tokens: int, named: bool = False) -> None:
        self.parent = parent
        self.shared_tokens = shared_tokens
        self.prompt_tokens = prompt_tokens
        self.named = named  # a prefix that tasks share by name

    def shares_with(self, above: Context) -> int:
        """How many of its first tokens come from `above`, a context that it goes on from; 0 if it does not."""
        shared = ENDLESS
        node: Context | None = self
        while node is not None and node is not above:
            shared = min(shared, node.shared_tokens)
            node = node.parent
        return 0 if node is None else min(shared, self.prompt_tokens)


class Branch:
    """A stretch of the token tree. `path`: (branch, end block) from the root down to this branch, whose end is open.

    Block i of a prompt lies in the first branch of its path with i < end. ever: replica -> blocks of the path that were
    once cached there; ever_any: the same anywhere.
    """

    __slots__ = ("ever", "ever_any", "path")

    def __init__(self, parent: Branch | None, start_tokens: int) -> None:
        above: list[tuple[Branch, int]] = []
        fork = start_tokens // BLOCK_TOKENS
        last = 0
        for branch, end in parent.path if parent is not None else ():
            end = min(end, fork)
            if end > last:
                above.append((branch, end))
                last = end
        self.path: tuple[tuple[Branch, int], ...] = (*above, (self, ENDLESS))
        self.ever: dict[int, int] = {}
        self.ever_any = 0


class PlannedCall:
    """One call of a task: what replicas and the log need to know of it. Times in ps."""

    __slots__ = (
        "awaited", "branch", "context", "delay_ps", "index", "joins", "kept_tokens", "output_tokens", "pause_ps",
        "prompt_tokens", "task", "tool_ps",
    )  # fmt: skip

    def __init__(self, task: PlannedTask, index: int, call: Call, context: Context, branch: Branch) -> None:
        self.task = task
        self.index = index
        self.context = context
        self.branch = branch
        self.prompt_tokens = context.prompt_tokens
        self.output_tokens = call.output_tokens
        self.kept_tokens = call.keep_tokens
        tools = call.tools
        self.tool_ps = 0 if not tools else tools[0].duration_ps if len(tools) == 1 else call.tool_ps
        self.delay_ps = call.delay_ps  # waited before it is sent; 0 where pause_ps of the call before it includes that
        self.pause_ps = self.tool_ps  # from its end until its chain goes on
        self.joins: tuple[int, ...] = ()  # calls of other chains that must have ended first
        self.awaited = False  # a call of another chain waits for this one


@dataclass(slots=True, eq=False)
class PlannedTask:
    """A task with its number in the stream of tasks; `chains` are lists of calls that follow each other."""

    task: Task
    number: int
    tenant: int
    arrival_ps: int = 0
    expected_tct_ps: int | None = None
    calls: list[PlannedCall] = field(default_factory=list)
    chains: list[list[PlannedCall]] = field(default_factory=list)


@dataclass(slots=True)
class _Node:
    """A context of the tree while a task is planned: it owns the tokens from start to end."""

    context: Context
    start: int
    end: int
    parent: _Node | None
    branch: Branch | None = None  # where it starts; later, where it ends
    weight: int = 1


class Prefixes:
    """The contexts shared by name across tasks; a name means the same content wherever it is declared."""

    def __init__(self) -> None:
        self._nodes: dict[str, tuple[Prefix, _Node]] = {}

    def node(self, prefix: Prefix) -> _Node:
        known = self._nodes.get(prefix.name)
        if known is not None:
            if known[0] != prefix:
                raise TraceError(
                    "declared twice with different content", where=f"prefix {prefix.name!r}", expected="one meaning"
                )
            return known[1]
        parent = self._nodes[prefix.extends][1] if prefix.extends is not None else None
        node = _node(parent, prefix.keep_tokens, prefix.keep_tokens + prefix.new_tokens, prefix.new_tokens, named=True)
        node.branch = Branch(node.parent.branch if node.parent is not None else None, node.start)
        self._nodes[prefix.name] = (prefix, node)
        return node


def _node(parent: _Node | None, keep: int, prompt: int, own_tokens: int, named: bool = False) -> _Node:
    while parent is not None and keep <= parent.start:
        parent = parent.parent  # what is kept lies wholly above: the fork belongs to an ancestor
    if parent is None:
        return _Node(Context(None, 0, prompt, named), 0, keep + own_tokens, None)
    return _Node(Context(parent.context, keep, prompt, named), keep, keep + own_tokens, parent)


def plan_task(task: Task, number: int, tenant: int, prefixes: Prefixes) -> PlannedTask:
    """Make a checked task ready for replay."""
    outer = {prefix.name: prefixes.node(prefix) for prefix in task.prefixes}
    plan = PlannedTask(task, number, tenant)
    if not _plan_chain(plan, outer):
        _plan_tree(plan, outer)
    _join_waits(plan)
    return plan


def _plan_tree(plan: PlannedTask, outer: dict[str, _Node]) -> None:
    """Any task: contexts that fork, calls side by side."""
    nodes: dict[str, _Node] = {}
    for call in plan.task.calls:
        above = None if call.extends is None else nodes.get(call.extends) or outer[call.extends]
        nodes[call.name] = _node(
            above, call.keep_tokens, call.keep_tokens + call.new_tokens, call.new_tokens + call.output_tokens
        )
    _assign_branches(list(nodes.values()))
    for index, (call, node) in enumerate(zip(plan.task.calls, nodes.values(), strict=True)):
        assert node.branch is not None
        plan.calls.append(PlannedCall(plan, index, call, node.context, node.branch))
    _link_chains(plan, plan.task.calls)


def _join_waits(plan: PlannedTask) -> None:
    """A call's tools and the delay of the next one are one wait, unless something else happens between the two."""
    for chain in plan.chains:
        for call, follower in pairwise(chain):
            if not call.awaited and not follower.joins:
                call.pause_ps += follower.delay_ps
                follower.delay_ps = 0


def _plan_chain(plan: PlannedTask, outer: dict[str, _Node]) -> bool:
    """The usual task at a third of the work: every call appends to the one before it. False if this is another."""
    calls: list[PlannedCall] = []
    name, end, context, branch = None, 0, None, None
    for call in plan.task.calls:
        kept = call.keep_tokens
        prompt = kept + call.new_tokens
        if branch is None:
            first = _node(outer.get(call.extends or ""), kept, prompt, 0)
            if call.after or (call.extends is not None and call.extends not in outer):
                return False
            context = first.context
            branch = Branch(first.parent.branch if first.parent is not None else None, first.start)
        elif call.extends == name and kept == end and call.after == (name,):
            context = Context(context, kept, prompt)
        else:
            return False
        calls.append(PlannedCall(plan, len(calls), call, context, branch))
        name, end = call.name, prompt + call.output_tokens
    plan.calls = calls
    plan.chains = [list(calls)]
    return True


def _assign_branches(nodes: list[_Node]) -> None:
    """Cut the tree into branches: at each fork the heaviest continuation stays in the branch, the others start one."""
    forks: dict[int, list[_Node]] = defaultdict(list)
    for node in reversed(nodes):
        if node.parent is not None:
            node.parent.weight += node.weight
            forks[id(node.parent)].append(node)
    for node in nodes:
        if node.branch is None:  # its parent is no call of this task
            node.branch = Branch(node.parent.branch if node.parent is not None else None, node.start)
        if id(node) not in forks:
            continue
        children = forks[id(node)]
        if len(children) == 1:  # the usual case: one call goes on from another, from its end or from within
            child, here = children[0], node.branch
            child.branch = here
            if child.start < node.end:
                node.branch = Branch(here, child.start)
            continue
        children.sort(key=lambda child: child.start)
        left = node.weight
        for start, same_start in groupby(children, key=lambda child: child.start):
            group = list(same_start)
            left -= sum(child.weight for child in group)
            heaviest = max(group, key=lambda child: child.weight)
            tail_stays = start < node.end and left > heaviest.weight
            here = node.branch
            for child in group:
                child.branch = here if child is heaviest and not tail_stays else Branch(here, start)
            if start < node.end and not tail_stays:
                node.branch = Branch(here, start)


def _link_chains(plan: PlannedTask, calls: tuple[Call, ...]) -> None:
    index = {call.name: i for i, call in enumerate(calls)}
    chain_ending_in: dict[int, list[PlannedCall]] = {}
    for call, planned in zip(calls, plan.calls, strict=True):
        if planned.index and call.after == (calls[planned.index - 1].name,) and planned.index - 1 in chain_ending_in:
            chain = chain_ending_in.pop(planned.index - 1)  # the usual case: one call after another
            chain.append(planned)
            chain_ending_in[planned.index] = chain
            continue
        before = sorted({index[name] for name in call.after}, reverse=True)
        follows = next((i for i in before if i in chain_ending_in), None)
        chain = chain_ending_in.pop(follows) if follows is not None else []
        if not chain:
            plan.chains.append(chain)
        planned.joins = tuple(i for i in before if i != follows)
        for i in planned.joins:
            plan.calls[i].awaited = True
        chain.append(planned)
        chain_ending_in[planned.index] = chain
