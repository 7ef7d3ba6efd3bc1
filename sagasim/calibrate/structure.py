"""Whether a cached token costs whole waves of thread blocks: an older H100 profile, which no file is fitted on.

Its attention table (milliseconds, FlashAttention-2) has chunks of 32 to 1,024 tokens that end contexts of up to 2,016.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sagasim.calibrate.attention import HOPPER_TILE, cached_structure
from sagasim.calibrate.fitting import non_negative, residual
from sagasim.calibrate.rank import checked_rank
from sagasim.calibrate.tables import columns, read_table
from sagasim.hardware import data_dir, load_gpu, load_model

__all__ = ["OLDER_H100", "older_h100"]

OLDER_H100 = Path("llmservingsim/H100-v0/Llama-3.1-70B/tp4/attention.csv.gz")
NEEDED = ("time_stats.attn_prefill.median", "prefill_chunk_size", "kv_cache_size")


def older_h100() -> dict[str, dict[str, float | int]]:
    """Errors of a launch, new tokens and cached ones in waves, four numbers for all rows: of all, and of long prefixes.

    A prefix is long from four times the chunk on.
    """
    rows = read_table(data_dir() / "calibration" / "sources" / OLDER_H100, NEEDED)
    ms, new, context = columns(rows, np.ones(len(rows[NEEDED[0]]), dtype=np.bool_), *NEEDED)
    rank = checked_rank(load_model("llama-3.1-70b"), load_gpu("h100"), 4, "bf16")
    cached = context - new
    waves = cached_structure(rank, new, splits=False, tile=HOPPER_TILE)
    parts = np.stack([np.ones_like(new), new, new * new, waves * cached], axis=1)
    us = ms * 1e3
    told = parts @ non_negative(parts, us, np.zeros(4))
    long = cached >= 4 * new
    return {"all": residual(told, us), "long": residual(told[long], us[long])}
