"""What the compiler makes of every kernel, without a GPU: python -m kernels.resources [--target sm_90] [--json]

registers, stack (bytes of spilled or indexed registers; 0 is good) and shared memory of each, and how often the
instructions occur that speed rests on: wgmma (sm_90) or mma.sync (before) where tensor cores multiply, cp.async where
loads run ahead of their use, accesses of 16 bytes a thread.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # compiled functions; only ever run as a program of its own

import torch

from kernels import copies, decode, layers, prefill
from kernels.tiles import decode_tile, prefill_tile

import triton  # isort: skip  # after kernels.device
from triton.backends.compiler import GPUTarget  # isort: skip
from triton.compiler import ASTSource  # isort: skip

__all__ = ["SHARED_LIMIT_BYTES", "Case", "Resources", "cases", "compile_case"]

SHARED_LIMIT_BYTES = {80: 163 * 1024, 90: 227 * 1024}  # of one block: CUDA C++ programming guide, compute capabilities
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
FP32_POINTERS = frozenset({"partial", "lse", "cos", "sin"})
INT_POINTERS = frozenset(
    {"block_table", "context_lens", "item_ends", "query_starts", "positions", "slots", "source_rows", "target_rows"}
)
WORD_POINTERS = frozenset({"source", "target"})
FLOATS = frozenset({"scale_log2", "epsilon"})
POINTERS = frozenset(
    {"q", "k_pool", "v_pool", "out", "x", "residual", "weight", "total", "qkv", "gate_up"}
)  # of the kernel's dtype


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel as it is launched: constants: its constexpr arguments."""

    name: str
    kernel: Any
    dtype: torch.dtype
    constants: dict[str, Any]
    warps: int


@dataclass(frozen=True, slots=True)
class Resources:
    """Of one compiled kernel; bytes, and counts of instructions in its PTX."""

    registers: int
    stack: int
    shared: int
    wgmma: int
    mma_sync: int
    cp_async: int
    wide_loads: int
    wide_stores: int


def _name(kernel: str, **values: object) -> str:
    return kernel + "".join(f" {key}={value}" for key, value in values.items())


def _decode(dtype: torch.dtype, head_dim: int, page: int, group: int, compute: int) -> Case:
    tile = decode_tile(head_dim, dtype, compute)
    constants = {
        "GROUP": group, "HEAD_DIM": head_dim, "PAGE": page, "BLOCK_H": 16, "BLOCK_N": tile.tokens, "BLOCK_B": 64,
        "STAGES": tile.stages, "UPCAST": False, "NO_ITEM": decode.NO_ITEM,
    }  # fmt: skip
    name = _name("decode_items", dtype=NAMES[dtype], head_dim=head_dim, page=page)
    return Case(name, decode._decode_items, dtype, constants, tile.warps)


def _prefill(dtype: torch.dtype, head_dim: int, page: int, group: int, compute: int, split: bool = False) -> Case:
    tile = prefill_tile(head_dim, dtype, compute)
    constants = {
        "GROUP": group, "HEAD_DIM": head_dim, "PAGE": page, "ROWS": tile.rows, "BLOCK_N": tile.tokens, "BLOCK_B": 8,
        "STAGES": tile.stages, "SPLIT": split, "UPCAST": False,
    }  # fmt: skip
    name = _name("prefill_tiles", dtype=NAMES[dtype], head_dim=head_dim, page=page, split=int(split))
    return Case(name, prefill._prefill_tiles, dtype, constants, tile.warps)


def cases(compute: int) -> Iterator[Case]:
    """Every kernel, as sm_<compute> gets it, in the forms that matter for resources.

    Those are dtypes, head sizes, and pages shorter and longer than a tile.
    """
    for dtype in NAMES:
        for head_dim in (64, 128):
            for page in (16, 128):
                yield _decode(dtype, head_dim, page, 4, compute)
                yield _prefill(dtype, head_dim, page, 4, compute)
            yield _prefill(dtype, head_dim, 16, 8, compute, split=True)
    for head_dim in (64, 128):
        bf16, form = torch.bfloat16, _name("", head_dim=head_dim)
        rows = prefill_tile(head_dim, bf16, compute).rows
        combine = {"HEAD_DIM": head_dim, "BLOCK_S": 16}
        yield Case("combine_items" + form, decode._combine_items, bf16, combine, 2)
        splits = {"GROUP": 4, "HEAD_DIM": head_dim, "ROWS": rows, "PART": 16, "BLOCK_B": 8}
        yield Case("combine_splits" + form, prefill._combine_splits, bf16, splits, 4)
        rope = {"KV_HEADS": 8, "GROUP": 4, "HEAD_DIM": head_dim, "PAGE": 16, "BLOCK_H": 4}
        yield Case("rope_and_cache" + form, layers._rope_and_cache, bf16, rope, 1)
    plan = {"MIN_ITEM": decode.MIN_ITEM, "START": 60, "TAIL": 4, "TAIL_OF": 5, "BLOCK_B": 256}
    yield Case("plan_items", decode._plan_items, torch.bfloat16, plan, 4)
    for columns in (4096, 8192):
        norm = {"BLOCK": columns, "ADD": True}
        yield Case(_name("rms_norm", columns=columns), layers._rms_norm, torch.bfloat16, norm, 8)
    yield Case("silu_mul", layers._silu_mul, torch.bfloat16, {"BLOCK": layers.ACTIVATION_BLOCK}, 4)
    for block, warps in ((1024, 2), (4096, 8)):
        move = {"SOURCE_ROWS": True, "TARGET_ROWS": True, "BLOCK": block}
        yield Case(_name("copy_pieces", words=block), copies._copy_pieces, torch.bfloat16, move, warps)


def _type(argument: str, dtype: torch.dtype) -> str:
    if argument in POINTERS:
        return f"*{NAMES[dtype]}"
    if argument in FP32_POINTERS:
        return "*fp32"
    if argument in INT_POINTERS or argument in WORD_POINTERS:
        return "*i32"
    return "fp32" if argument in FLOATS else "i32"


def compile_case(case: Case, capability: int) -> Resources:
    """Compile for sm_<capability>; pointers, strides and row lengths are multiples of 16, as in real shapes."""
    arguments = case.kernel.arg_names
    signature = {a: "constexpr" if a in case.constants else _type(a, case.dtype) for a in arguments}
    divisible = [["tt.divisibility", 16]]
    aligned = {
        (i,): divisible
        for i, a in enumerate(arguments)
        if signature[a].startswith("*") or a.startswith("stride_") or a in ("columns", "words")
    }
    constants = {(arguments.index(a),): value for a, value in case.constants.items()}
    source = ASTSource(case.kernel, signature, constants, aligned)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": case.warps, "num_stages": 3}
    )
    registers, stack = _usage(compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    return Resources(
        registers=registers,
        stack=stack,
        shared=compiled.metadata.shared,
        wgmma=len(re.findall(r"wgmma\.mma_async", ptx)),
        mma_sync=len(re.findall(r"mma\.sync", ptx)),
        cp_async=len(re.findall(r"cp\.async\.c[ag]", ptx)),
        wide_loads=len(re.findall(r"ld\.global\S*\.v4", ptx)),
        wide_stores=len(re.findall(r"st\.global\S*\.v4", ptx)),
    )


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes of a cubin, as cuobjdump of the Triton wheel reads them."""
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        done = subprocess.run([tool, "--dump-resource-usage", str(path)], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", done.stdout)
    if found is None:
        raise RuntimeError(f"cuobjdump said nothing of registers: {done.stdout[:200]}")
    return int(found[1]), int(found[2])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.resources", description=__doc__)
    parser.add_argument("--target", choices=[f"sm_{c}" for c in SHARED_LIMIT_BYTES], action="append")
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args(arguments)
    for target in options.target or [f"sm_{c}" for c in SHARED_LIMIT_BYTES]:
        for case in cases(int(target[3:])):
            if options.only not in case.name:
                continue
            used = compile_case(case, int(target[3:]))
            if options.json:
                print(json.dumps({"kernel": case.name, "target": target, **asdict(used)}), flush=True)
            else:
                print(f"{target} {case.name:58s}", *(f"{k} {v}" for k, v in asdict(used).items()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
