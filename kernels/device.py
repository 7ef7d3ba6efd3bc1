"""Where kernels run. Import this before triton: its interpreter is chosen when functions are decorated.

Without a GPU the interpreter is on, unless TRITON_INTERPRET says otherwise ("0" leaves kernels as compiled functions,
which can be compiled for a GPU that is not there but not launched).
"""

from __future__ import annotations

import os
import sys
from functools import cache

import torch

if "TRITON_INTERPRET" not in os.environ and not torch.cuda.is_available():
    if "triton" in sys.modules:
        raise ImportError(
            "triton was imported before kernels: without a GPU set TRITON_INTERPRET=1, or import it later"
        )
    os.environ["TRITON_INTERPRET"] = "1"

__all__ = ["DTYPES", "interpreted", "processors", "upcast"]

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
INTERPRETED_PROCESSORS = 4  # pretended, so that tiny shapes are split as large ones are on a GPU


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def upcast(dtype: torch.dtype) -> bool:
    """Whether a kernel must widen its operands to fp32 before it computes.

    The interpreter holds bf16 as 16-bit integers: copies are right, arithmetic on them is silently wrong.
    """
    return interpreted() and dtype == torch.bfloat16


@cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a device."""
    if device.type != "cuda":
        return INTERPRETED_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count
