"""Units: the clock counts whole picoseconds, so that sums of step times are exact.

An int64 of picoseconds holds 106 days; nothing longer is simulated.
"""

from __future__ import annotations

from typing import Final

__all__ = ["BLOCK_TOKENS", "MAX_PS", "PS_PER_MS", "PS_PER_S", "PS_PER_US", "ps_from_s"]

PS_PER_US: Final = 10**6
PS_PER_MS: Final = 10**9
PS_PER_S: Final = 10**12
MAX_PS: Final = 2**63 - 1
BLOCK_TOKENS: Final = 16  # KV block of vLLM v1 on CUDA


def ps_from_s(seconds: float) -> int:
    """Seconds to picoseconds, quantised to whole microseconds: the same integer on every machine."""
    return round(seconds * 1e6) * PS_PER_US
