"""Decode attention against its fp32 reference: shapes chosen by hypothesis, then the edges one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import kernel_cases as kc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import DEVICE, DTYPES, TOLERANCE, few, ints, paged, pytestmark, torch  # noqa: F401

from kernels import decode
from kernels.decode import DecodePlan, decode_attention, plan_decode
from kernels.device import processors
from kernels.reference import decode_reference, relative_error
from kernels.tiles import capability, decode_tile


def check(case: Any, **options: Any) -> None:
    out = decode_attention(*case.arguments, **options)
    reference = decode_reference(*case.arguments, scale=options.get("scale"))
    assert out.dtype == case.q.dtype
    assert relative_error(out, reference) <= TOLERANCE[case.q.dtype]


@few
@given(kc.dtypes, kc.head_dims, kc.pages, kc.groups, st.lists(st.integers(0, 400), min_size=1, max_size=4), kc.seeds)
def test_any_lengths_in_one_batch(
    dtype: Any, head_dim: int, page: int, heads: tuple[int, int], contexts: list[int], seed: int
) -> None:
    check(paged(dtype, head_dim, page, *heads, contexts, len(contexts), seed))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("page", [16, 128])
@pytest.mark.parametrize("contexts", [[1], [16], [128], [129], [127, 1, 300], [0], [0, 5, 0]], ids=str)
def test_edges(dtype: Any, page: int, contexts: list[int]) -> None:
    """Length 1, exactly one page or tile, the last page partly filled, unequal lengths, rows without a context."""
    check(paged(dtype, 64, page, 4, 1, contexts, len(contexts)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("contexts", [[300], [1100, 20], [0, 5]], ids=str)
def test_more_items_than_a_context_has_tiles(dtype: Any, contexts: list[int]) -> None:
    """Items without tokens have a log-sum-exp of -inf and no weight."""
    case = paged(dtype, 64, 16, 4, 1, contexts, len(contexts))
    ends = [12 * (i + 1) for i in range(len(contexts))]
    check(case, plan=DecodePlan(ints(ends), ends[-1] + 2))


def test_splitting_changes_nothing() -> None:
    """In few items or in more than the combination takes at a time."""
    case = paged(torch.float32, 64, 32, 4, 1, [640, 70], 2)
    whole = decode_attention(*case.arguments, plan=DecodePlan(ints([1, 2]), 2))
    for ends in ([5, 7], [40, 42]):
        split = decode_attention(*case.arguments, plan=DecodePlan(ints(ends), ends[-1]))
        assert relative_error(split, whole) < 1e-6


def test_another_scale() -> None:
    check(paged(torch.float32, 64, 16, 2, 1, [70, 9], 2), scale=0.9)


def test_large_scores_do_not_overflow() -> None:
    case = paged(torch.float32, 64, 16, 2, 1, [300], 1)
    case = replace(case, q=case.q * 1000)
    assert relative_error(decode_attention(*case.arguments), decode_reference(*case.arguments)) <= 1e-2


def test_writes_into_strided_rows_and_nowhere_else() -> None:
    """q and out may be rows of wider tensors, as they are behind a fused projection."""
    case = paged(torch.float32, 64, 16, 4, 1, [33, 5], 2)
    wide = torch.full((3, 6, 64), 7.0, device=DEVICE)
    queries = torch.zeros((2, 6, 64), device=DEVICE)
    queries[:, :4] = case.q
    out = decode_attention(queries[:, :4], *case.arguments[1:], out=wide[:2, :4])
    assert relative_error(out, decode_reference(*case.arguments)) <= 1e-5
    assert bool((wide[2] == 7).all())
    assert bool((wide[:, 4:] == 7).all())


def counts_of(contexts: list[int], kv_heads: int) -> tuple[list[int], int]:
    """Items of each sequence by the plan, and the most that the plan says there can be."""
    plan = plan_decode(ints(contexts), kv_heads)
    ends = plan.item_ends.tolist()
    return [end - start for start, end in zip([0, *ends], ends, strict=False)], plan.items


def cost_of(size: int, contexts: list[int], kv_heads: int, slots: int) -> int:
    """Rounds of programs times the time of an item, a last round counting four fifths at least."""
    programs = kv_heads * sum(-(-length // size) for length in contexts)
    full, rest = divmod(programs, slots)
    return (size + decode.START_TOKENS) * (5 * full * slots + (max(5 * rest, 4 * slots) if rest else 0))


@few
@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=70), st.sampled_from((1, 2, 8)))
def test_a_plan_takes_the_size_whose_rounds_take_least(contexts: list[int], kv_heads: int) -> None:
    counts, most_items = counts_of(contexts, kv_heads)
    slots = processors(DEVICE) * decode_tile(128, torch.bfloat16, capability(DEVICE)).resident
    most = max(1, decode.MOST_ROUNDS * slots // kv_heads)
    least, parts = max(decode.MIN_ITEM, -(-sum(contexts) // most)), 1
    sizes = [max(least, max(contexts))]
    while sizes[-1] > least:
        parts += max(1, parts // 8)
        sizes.append(max(least, -(-max(contexts) // parts)))
    best = min(sizes, key=lambda size: cost_of(size, contexts, kv_heads, slots))
    assert counts == [-(-length // best) for length in contexts]
    assert sum(counts) <= most_items == len(contexts) + most


def test_one_long_context_fills_the_gpu_and_short_ones_are_left_whole() -> None:
    slots = processors(DEVICE) * decode_tile(128, torch.bfloat16, capability(DEVICE)).resident
    (count,), _ = counts_of([131_072], 1)
    assert 0.8 * slots <= count <= slots
    assert counts_of([100, 256, 0, 1], 1)[0] == [1, 1, 0, 1]
    counts, _ = counts_of([60_000, *[500] * 7], 1)
    assert counts[0] >= 5


def swapped(case: Any, **values: Any) -> tuple[Any, ...]:
    return replace(case, **values).arguments


def test_mistakes_are_told() -> None:
    case = paged(torch.float32, 64, 16, 4, 2, [20, 3], 2)
    narrow = case.k_pool[..., :32].contiguous()
    mistakes: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ValueError, "q has 3 heads for 2 KV heads", {"q": case.q[:, :3].contiguous()}),
        (TypeError, "q is torch.float16 and the pools torch.float32", {"q": case.q.half()}),
        (TypeError, "k_pool is torch.float64", {"k_pool": case.k_pool.double()}),
        (TypeError, "k_pool is a list", {"k_pool": [1]}),
        (ValueError, "k_pool has shape", {"k_pool": case.k_pool[0]}),
        (ValueError, "the same layout", {"v_pool": case.v_pool[:-1]}),
        (ValueError, "contiguous pages", {"k_pool": case.k_pool.transpose(1, 2)}),
        (ValueError, "head_dim 32", {"k_pool": narrow, "v_pool": narrow}),
        (TypeError, "block_table is torch.int64", {"block_table": case.block_table.long()}),
        (TypeError, "context_lens is torch.int64", {"context_lens": case.context_lens.long()}),
        (ValueError, "context_lens has 1 entries; expected 2", {"context_lens": case.context_lens[:1]}),
        (ValueError, "q has 1 rows and block_table 2", {"q": case.q[:1]}),
    ]  # fmt: skip
    for kind, message, values in mistakes:
        with pytest.raises(kind, match=message):
            decode_attention(*swapped(case, **values))
    with pytest.raises(ValueError, match="scale is 0"):
        decode_attention(*case.arguments, scale=0)
    with pytest.raises(ValueError, match="pages of 24 tokens; expected one of"):
        decode_attention(case.q, *(torch.zeros(2, 2, 24, 64, device=DEVICE),) * 2, case.block_table, case.context_lens)


@pytest.mark.skipif(torch.cuda.is_available(), reason="contents are read in the interpreter alone")
def test_contents_are_checked_in_the_interpreter() -> None:
    case = paged(torch.float32, 64, 16, 4, 2, [20, 3], 2)
    with pytest.raises(ValueError, match=r"context_lens has 1000; expected 0 to 48"):
        decode_attention(*swapped(case, context_lens=ints([1000, 3])))
    with pytest.raises(ValueError, match="block_table names page 99"):
        decode_attention(*swapped(case, block_table=case.block_table * 0 + 99))
