"""Norm, rotary positions with the cache write, and gated activation against their fp32 references."""

from __future__ import annotations

from typing import Any

import kernel_cases as kc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import DEVICE, TOLERANCE, few, ints, normal, pytestmark, torch  # noqa: F401

from kernels.layers import rms_norm, rope_and_cache, rope_tables, silu_mul
from kernels.reference import relative_error, rms_norm_reference, rope_reference, silu_mul_reference


@few
@given(kc.dtypes, st.integers(1, 4), st.integers(1, 300), st.booleans(), kc.seeds)
def test_rms_norm(dtype: Any, rows: int, columns: int, add: bool, seed: int) -> None:
    x, weight = normal((rows, columns), dtype, seed), normal((columns,), dtype, seed + 1)
    residual = normal((rows, columns), dtype, seed + 2) if add else None
    out, total = rms_norm(x, weight, residual)
    expected, expected_total = rms_norm_reference(x, weight, residual, 1e-5)
    assert relative_error(out, expected) <= TOLERANCE[dtype]
    assert relative_error(total, expected_total) <= TOLERANCE[dtype]


@few
@given(kc.dtypes, st.integers(1, 3), st.integers(1, 1500), kc.seeds)
def test_silu_mul(dtype: Any, rows: int, columns: int, seed: int) -> None:
    gate_up = normal((rows, 2 * columns), dtype, seed)
    assert relative_error(silu_mul(gate_up), silu_mul_reference(gate_up)) <= TOLERANCE[dtype]


@few
@given(kc.dtypes, kc.head_dims, kc.pages, kc.groups, st.integers(1, 4), kc.seeds)
def test_rope_and_cache(dtype: Any, head_dim: int, page: int, group: tuple[int, int], tokens: int, seed: int) -> None:
    heads, kv_heads = group
    generator = torch.Generator().manual_seed(seed)
    qkv = normal((tokens, (heads + 2 * kv_heads) * head_dim), dtype, seed)
    positions = ints(torch.randint(0, 500, (tokens,), generator=generator).tolist())
    slots = torch.randperm(3 * page, generator=generator)[:tokens].tolist()
    slots[0] = -1
    k_pool = torch.full((3, kv_heads, page, head_dim), 7.0, dtype=dtype, device=DEVICE)
    v_pool = k_pool.clone()
    cos, sin = rope_tables(500, head_dim, 10_000.0, DEVICE)
    out = rope_and_cache(qkv, k_pool, v_pool, cos, sin, positions, ints(slots))
    split = qkv.view(tokens, -1, head_dim)
    assert relative_error(out, rope_reference(split[:, :heads], cos, sin, positions)) <= TOLERANCE[dtype]
    keys = rope_reference(split[:, heads : heads + kv_heads], cos, sin, positions)
    expected_k, expected_v = torch.full_like(k_pool, 7.0).float(), torch.full_like(v_pool, 7.0)
    for i, slot in enumerate(slots):
        if slot >= 0:
            expected_k[slot // page, :, slot % page] = keys[i]
            expected_v[slot // page, :, slot % page] = split[i, heads + kv_heads :]
    assert relative_error(k_pool, expected_k) <= TOLERANCE[dtype]
    assert torch.equal(v_pool, expected_v)


def test_a_turn_keeps_lengths_and_relative_angles() -> None:
    """The product of a turned query and key depends on the distance of their positions alone."""
    cos, sin = rope_tables(200, 64, 10_000.0, DEVICE)
    q, k = normal((1, 1, 64), torch.float32, 1), normal((1, 1, 64), torch.float32, 2)
    products = [
        float((rope_reference(q, cos, sin, ints([a])) * rope_reference(k, cos, sin, ints([a - 7]))).sum())
        for a in (7, 60, 199)
    ]
    assert max(products) - min(products) < 1e-4 * abs(products[0]) + 1e-4
    assert relative_error(rope_reference(q, cos, sin, ints([0])), q) == 0


def test_mistakes_are_told() -> None:
    x, pool = torch.zeros(2, 8, device=DEVICE), torch.zeros(2, 1, 16, 64, device=DEVICE)
    qkv, two = torch.zeros(2, 192, device=DEVICE), ints([0, 1])
    cos, sin = rope_tables(10, 64, 10_000.0, DEVICE)
    for kind, message, call in (
        (ValueError, r"weight is \(7,\)", lambda: rms_norm(x, torch.zeros(7, device=DEVICE))),
        (ValueError, "residual is", lambda: rms_norm(x, torch.zeros(8, device=DEVICE), x[:1])),
        (TypeError, "x is torch.int64", lambda: rms_norm(x.long(), x[0])),
        (ValueError, "expected an even number", lambda: silu_mul(x[:, :7].contiguous())),
        (ValueError, "expected a contiguous", lambda: silu_mul(x[:, :6])),
        (ValueError, "qkv has 8 columns", lambda: rope_and_cache(x, pool, pool, cos, sin, two, two)),
        (TypeError, "qkv is torch.float16", lambda: rope_and_cache(qkv.half(), pool, pool, cos, sin, two, two)),
        (ValueError, "cos is", lambda: rope_and_cache(qkv, pool, pool, cos[:, :5], sin[:, :5], two, two)),
        (ValueError, "slots has 1 entries", lambda: rope_and_cache(qkv, pool, pool, cos, sin, two, two[:1])),
    ):
        with pytest.raises(kind, match=message):
            call()
