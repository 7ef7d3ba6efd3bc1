"""A set of names that takes some 20 bytes for each, however long they are."""

from __future__ import annotations

from array import array
from hashlib import blake2b

__all__ = ["Names"]

_FIRST_SLOTS = 1 << 10


class Names:
    """Which names have come before, by 64-bit hashes in an open table: two of ten million names are taken for one and
    the same with a probability of 3 in a million.
    """

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * _FIRST_SLOTS))
        self._used = 0

    def __len__(self) -> int:
        return self._used

    def add(self, name: str) -> bool:
        """Whether the name is new."""
        key = int.from_bytes(blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest(), "little") or 1
        if not _insert(self._slots, key):
            return False
        self._used += 1
        if 3 * self._used > 2 * len(self._slots):
            larger = array("Q", bytes(16 * len(self._slots)))
            for one in self._slots:
                if one:
                    _insert(larger, one)
            self._slots = larger
        return True


def _insert(slots: array[int], key: int) -> bool:
    """Put a key other than 0 where it belongs; False if it is there."""
    mask = len(slots) - 1
    place = key & mask
    while slots[place]:
        if slots[place] == key:
            return False
        place = (place + 1) & mask
    slots[place] = key
    return True
