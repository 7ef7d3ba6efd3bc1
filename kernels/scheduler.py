"""Which tokens a step computes: continuous batching, token budget and chunked prefill as the simulator models them.

Running requests go first, in the order of admission; what is left of the budget goes to waiting ones, each admitted if
the blocks of its chunk are there, in the order of arrival and none before its turn. Where a running request finds no
block, the one admitted last is sent back to wait and will be computed again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from kernels.blocks import BLOCK_TOKENS, Blocks, chain

__all__ = ["Request", "Scheduler", "Work"]


@dataclass(slots=True, eq=False)
class Request:
    """One call. tokens: prompt, then the outputs so far; times in seconds of the engine's clock."""

    name: str
    tokens: list[int]
    prompt_tokens: int
    output_tokens: int
    queued_s: float = 0.0
    scheduled_s: float = 0.0
    first_token_s: float = 0.0
    last_token_s: float = 0.0
    cached_tokens: int = 0  # of the prompt, found when it was first admitted
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    row: int = -1  # its block table
    hashes: list[bytes] = field(default_factory=list)
    registered: int = 0

    @property
    def produced(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def finished(self) -> bool:
        return self.produced >= self.output_tokens


@dataclass(frozen=True, slots=True)
class Work:
    """New tokens of a request in a step, and the first of its blocks that the step's block table lacks."""

    request: Request
    new: int
    first_block: int


class Scheduler:
    """Requests that wait and run on `blocks`."""

    def __init__(self, blocks: Blocks, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self.blocks = blocks
        self._seqs, self._budget = max_num_seqs, max_num_batched_tokens
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._rows = list(range(max_num_seqs - 1, -1, -1))
        self.preemptions = 0
        self._preempted = False  # in this plan: then nothing is admitted

    def add(self, request: Request) -> None:
        """Queue a request. Its whole context must fit into the cache."""
        self.waiting.append(request)

    def plan(self, now_s: float) -> list[Work]:
        """The work of the next step; empty where there is none."""
        budget = self._budget
        work: list[Work] = []
        place = 0
        while place < len(self.running) and budget:
            request = self.running[place]
            new = min(len(request.tokens) - request.computed, budget)
            first = len(request.blocks)
            if not self._room(request, new):
                continue  # the last of the running was sent back: perhaps this one, else look again
            work.append(Work(request, new, first))
            budget -= new
            place += 1
        while self.waiting and budget and len(self.running) < self._seqs and not self._preempted:
            admitted = self._admit(self.waiting[0], budget, now_s)
            if admitted is None:
                break
            work.append(admitted)
            budget -= admitted.new
        self._preempted = False
        return work

    def _room(self, request: Request, new: int) -> bool:
        """Take the blocks for `new` tokens; where there are none, send back the request admitted last."""
        needed = -(-(request.computed + new) // BLOCK_TOKENS) - len(request.blocks)
        if needed <= self.blocks.free:
            request.blocks += self.blocks.take(needed)
            self._register(request, new)
            return True
        victim = self.running.pop()
        self._give_back(victim)
        self.waiting.appendleft(victim)
        self.preemptions += 1
        self._preempted = True
        return False

    def _admit(self, request: Request, budget: int, now_s: float) -> Work | None:
        most = (len(request.tokens) - 1) // BLOCK_TOKENS  # the last token is always computed
        chain(request.tokens, request.hashes, most)
        matched = self.blocks.match(request.hashes[:most])
        cached = len(matched) * BLOCK_TOKENS
        new = min(len(request.tokens) - cached, budget)
        needed = -(-(cached + new) // BLOCK_TOKENS) - len(matched)
        if needed + self.blocks.idle(matched) > self.blocks.free:
            return None
        self.waiting.popleft()
        self.blocks.hold(matched)
        request.blocks = matched + self.blocks.take(needed)
        request.computed = cached
        request.registered = len(matched)
        request.row = self._rows.pop()
        if not request.scheduled_s:
            request.scheduled_s, request.cached_tokens = now_s, cached
        self.running.append(request)
        self._register(request, new)
        return Work(request, new, 0)

    def done(self, work: Sequence[Work], outputs: Sequence[int], now_s: float) -> list[Request]:
        """Take in the tokens that a step produced, one for each work; the requests that have ended."""
        ended = []
        for item, token in zip(work, outputs, strict=True):
            request = item.request
            request.computed += item.new
            if request.computed == len(request.tokens):
                request.tokens.append(token)
                request.last_token_s = now_s
                if request.produced == 1:
                    request.first_token_s = now_s
            if request.finished:
                self.running.remove(request)
                self._give_back(request)
                ended.append(request)
        return ended

    def _register(self, request: Request, new: int) -> None:
        """Make blocks known that the step being planned fills: it writes them before anything of it reads them."""
        full = (request.computed + new) // BLOCK_TOKENS
        if full > request.registered:
            chain(request.tokens, request.hashes, full)
            for i in range(request.registered, full):
                self.blocks.register(request.blocks[i], request.hashes[i])
            request.registered = full

    def _give_back(self, request: Request) -> None:
        self.blocks.release(request.blocks)
        request.blocks = []
        self._rows.append(request.row)
        request.row = -1
