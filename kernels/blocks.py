"""The pages of a KV cache as blocks of 16 tokens: full ones are found again by what they and all before them hold.

A full block is known by a chain of hashes: its tokens and the hash before it. Blocks that nobody holds keep what is in
them until they are taken, the least recently freed first; a request frees its last block first, so that the beginnings
of contexts live longest. These are rules of vLLM (v1/core/block_pool.py), which the simulator models.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

__all__ = ["BLOCK_TOKENS", "Blocks", "chain"]

BLOCK_TOKENS = 16


def chain(tokens: Sequence[int], hashes: list[bytes], blocks: int) -> list[bytes]:
    """`hashes` of the first blocks of `tokens`, made longer until at least `blocks` of them have theirs."""
    for start in range(len(hashes) * BLOCK_TOKENS, blocks * BLOCK_TOKENS, BLOCK_TOKENS):
        block = array("i", tokens[start : start + BLOCK_TOKENS]).tobytes()
        hashes.append(blake2b((hashes[-1] if hashes else b"") + block, digest_size=16).digest())
    return hashes


class Blocks:
    """count: how many blocks there are. A block is free, or held by one or more requests."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(count))
        self._holders = [0] * count
        self._found: dict[bytes, int] = {}
        self._hash: list[bytes | None] = [None] * count

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """The blocks that hold the longest known beginning of a chain. Does not hold them."""
        matched = []
        for digest in hashes:
            block = self._found.get(digest)
            if block is None:
                break
            matched.append(block)
        return matched

    def idle(self, blocks: Sequence[int]) -> int:
        """How many of these nobody holds."""
        return sum(1 for block in blocks if not self._holders[block])

    def hold(self, blocks: Sequence[int]) -> None:
        """Hold blocks that were matched."""
        for block in blocks:
            if not self._holders[block]:
                del self._free[block]
            self._holders[block] += 1

    def take(self, count: int) -> list[int]:
        """Hold `count` blocks to be written; what they held is forgotten. At most `free`."""
        taken = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in taken:
            digest = self._hash[block]
            if digest is not None and self._found.get(digest) == block:
                del self._found[digest]
            self._hash[block] = None
            self._holders[block] = 1
        return taken

    def register(self, block: int, digest: bytes) -> None:
        """Make a full block known; of two with the same content the first stays known."""
        self._hash[block] = digest
        self._found.setdefault(digest, block)

    def release(self, blocks: Sequence[int]) -> None:
        """Stop holding the blocks of a request, the last one first."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if not self._holders[block]:
                self._free[block] = None
