"""Chunked prefill attention against its fp32 reference."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import kernel_cases as kc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import DEVICE, DTYPES, TOLERANCE, few, ints, paged, pytestmark, torch  # noqa: F401

from kernels.prefill import MIN_SPLIT, choose_splits, prefill_attention
from kernels.reference import prefill_reference, relative_error

chunks = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 150)), min_size=1, max_size=2)  # new, cached


def run(
    dtype: Any, head_dim: int, page: int, heads: tuple[int, int], parts: list[tuple[int, int]], *,
    first: int = 0, seed: int = 0, **options: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """(out, reference), both with rows of no chunk at 7."""
    starts = list(accumulate((new for new, _ in parts), initial=first))
    case = paged(dtype, head_dim, page, *heads, [new + cached for new, cached in parts], starts[-1] + 2, seed)
    arguments = (case.q, case.k_pool, case.v_pool, case.block_table, ints(starts), case.context_lens)
    out = prefill_attention(*arguments, out=torch.full_like(case.q, 7), **options)
    reference = prefill_reference(*arguments, scale=options.get("scale"))
    reference[:first], reference[starts[-1] :] = 7, 7
    return out, reference


@few
@given(kc.dtypes, kc.head_dims, kc.pages, kc.groups, chunks, st.integers(1, 3), st.integers(0, 3), kc.seeds)
def test_any_chunks_in_one_batch(
    dtype: Any, head_dim: int, page: int, heads: tuple[int, int], parts: list[tuple[int, int]], splits: int,
    first: int, seed: int,
) -> None:  # fmt: skip
    out, reference = run(dtype, head_dim, page, heads, parts, first=first, seed=seed, splits=splits)
    assert relative_error(out, reference) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize(
    "parts", [[(1, 0)], [(16, 0)], [(64, 64)], [(65, 0)], [(3, 129)], [(1, 15), (40, 0), (0, 0)]], ids=str
)
def test_edges(dtype: Any, splits: int, parts: list[tuple[int, int]]) -> None:
    """One token, one page, whole tiles, one token over, a short chunk on a prefix, unequal and empty chunks, and splits
    without a token."""
    out, reference = run(dtype, 64, 16, (4, 1), parts, splits=splits)
    assert relative_error(out, reference) <= TOLERANCE[dtype]


def test_heads_that_do_not_divide_the_rows() -> None:
    """Three, five and seven heads for each KV head leave rows of a tile unused."""
    for heads in ((3, 1), (10, 2), (7, 1)):
        out, reference = run(torch.float32, 64, 16, heads, [(50, 20), (9, 0)])
        assert relative_error(out, reference) <= 1e-5


def test_another_scale() -> None:
    out, reference = run(torch.float32, 64, 16, (4, 2), [(20, 30)], scale=0.9)
    assert relative_error(out, reference) <= 1e-5


def test_large_scores_do_not_overflow() -> None:
    case = paged(torch.float32, 64, 16, 4, 1, [90], 40)
    arguments = (case.q * 1000, case.k_pool, case.v_pool, case.block_table, ints([0, 40]), case.context_lens)
    for splits in (1, 3):
        assert relative_error(prefill_attention(*arguments, splits=splits), prefill_reference(*arguments)) <= 1e-2


def test_no_tokens() -> None:
    case = paged(torch.float32, 64, 16, 4, 1, [90], 0)
    starts = ints([0, 0])
    out = prefill_attention(case.q, case.k_pool, case.v_pool, case.block_table, starts, case.context_lens)
    assert out.shape == (0, 4, 64)


@few
@given(st.integers(1, 4000), st.sampled_from((108, 132, 264)), st.integers(1, 200_000))
def test_splits_fill_waves_and_stay_long(programs: int, slots: int, longest: int) -> None:
    splits = choose_splits(programs, slots, longest)
    assert splits == 1 or longest // splits >= MIN_SPLIT
    waves = -(-programs * splits // slots)
    assert waves / splits <= -(-programs // slots)  # never more time than without splits


def test_few_long_programs_are_split() -> None:
    assert choose_splits(8, 132, 32_768) >= 8
    assert choose_splits(132, 132, 32_768) == 1
    assert choose_splits(8, 132, 512) == 1


def test_mistakes_are_told() -> None:
    case = paged(torch.float32, 64, 16, 4, 2, [20, 3], 9)
    q, k, v, table, lens = case.arguments
    mistakes: list[tuple[type[Exception], str, tuple[Any, ...]]] = [
        (TypeError, "query_starts is torch.int64", (q, k, v, table, ints([0, 4, 7]).long(), lens)),
        (ValueError, "query_starts has 2 entries; expected 3", (q, k, v, table, ints([0, 4]), lens)),
        (ValueError, "q has head_dim 32", (q[..., :32].contiguous(), k, v, table, ints([0, 4, 7]), lens)),
        (ValueError, "expected contiguous heads", (q.transpose(0, 1), k, v, table, ints([0, 4, 7]), lens)),
        (ValueError, "block_table has no columns", (q, k, v, table[:, :0], ints([0, 4, 7]), lens)),
    ]
    for kind, message, arguments in mistakes:
        with pytest.raises(kind, match=message):
            prefill_attention(*arguments)
    with pytest.raises(ValueError, match="scale is -1"):
        prefill_attention(q, k, v, table, ints([0, 4, 7]), lens, scale=-1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="contents are read in the interpreter alone")
def test_contents_are_checked_in_the_interpreter() -> None:
    case = paged(torch.float32, 64, 16, 4, 2, [20, 3], 9)
    q, k, v, table, lens = case.arguments
    with pytest.raises(ValueError, match="query_starts run from 0 to 30"):
        prefill_attention(q, k, v, table, ints([0, 4, 30]), lens)
    with pytest.raises(ValueError, match="chunk 1 has 4 tokens of a context of 3"):
        prefill_attention(q, k, v, table, ints([0, 4, 8]), lens)
    assert DEVICE.type == "cpu"
