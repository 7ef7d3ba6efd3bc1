"""Every kernel compiled for sm_90 and sm_80, without a GPU: spills, shared memory, and the instructions that matter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import kernel_cases  # noqa: F401  # skips all of this where torch or triton is not installed
import pytest

ROOT = Path(__file__).parents[1]
SHARED_LIMIT_BYTES = {"sm_80": 163 * 1024, "sm_90": 227 * 1024}
TARGETS = sorted(SHARED_LIMIT_BYTES)


@cache
def compiled(target: str) -> tuple[dict[str, Any], ...]:
    """A process of its own: here, without a GPU, kernels are made for the interpreter."""
    done = subprocess.run(
        [sys.executable, "-m", "kernels.resources", "--json", "--target", target],
        capture_output=True, text=True, timeout=300, check=False, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return tuple(json.loads(line) for line in done.stdout.splitlines())


def of(target: str, *words: str) -> list[dict[str, Any]]:
    found = [row for row in compiled(target) if all(word in row["kernel"] for word in words)]
    assert found
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_is_there(target: str) -> None:
    """A new kernel has to be added to resources.cases."""
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "kernels").glob("*.py"))
    lines = [line for source in sources for line in source.splitlines() if line.startswith("def _")]
    launched = {line[5:].split("(")[0] for line in lines if _is_kernel(line[4:].split("(")[0])}
    assert {row["kernel"].split()[0] for row in compiled(target)} == launched
    assert len(launched) == 9


def _is_kernel(name: str) -> bool:
    """Whether a function is launched on a grid somewhere."""
    return any(f"{name}[(" in path.read_text(encoding="utf-8") for path in (ROOT / "kernels").glob("*.py"))


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_spills_and_shared_memory_suffices(target: str) -> None:
    for row in compiled(target):
        assert row["stack"] == 0, row
        assert row["shared"] <= SHARED_LIMIT_BYTES[target], row


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_prefill_multiplies_on_tensor_cores(dtype: str) -> None:
    for row in of("sm_90", "prefill_tiles", dtype):
        assert row["wgmma"] > 0, row
        assert row["mma_sync"] == 0, row
    for row in of("sm_80", "prefill_tiles", dtype):
        assert row["mma_sync"] > 0, row
        assert row["wgmma"] == 0, row


@pytest.mark.parametrize("target", TARGETS)
def test_decode_loads_run_ahead(target: str) -> None:
    """Asynchronous copies in every form; in 16 bits two buffers of K and V, and three (two) programs on an SM."""
    for row in of(target, "decode_items"):
        assert row["cp_async"] > 0, row
    programs = 3 if target == "sm_90" else 2
    for row in of(target, "decode_items", "16 "):
        if "dtype=fp32" not in row["kernel"]:
            assert 2 * 2 * 16 * 1024 <= row["shared"] <= SHARED_LIMIT_BYTES[target] // programs, row
            assert row["registers"] * 128 * programs <= 65_536, row
            assert row["mma_sync"] > 0, row


@pytest.mark.parametrize("target", TARGETS)
def test_fp32_stays_fp32(target: str) -> None:
    """input_precision="ieee": no tensor-core product, which would round operands to tf32."""
    for row in of(target, "dtype=fp32"):
        assert row["wgmma"] == row["mma_sync"] == 0, row


@pytest.mark.parametrize("target", TARGETS)
def test_copies_move_16_bytes_a_thread(target: str) -> None:
    for kernel in ("copy_pieces", "silu_mul", "rms_norm"):
        for row in of(target, kernel):
            assert row["wide_loads"] > 0, row
            assert row["wide_stores"] > 0, row
