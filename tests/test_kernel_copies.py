"""Copies of pages, swaps and migration: byte for byte what indexing in PyTorch gives."""

from __future__ import annotations

from typing import Any

import kernel_cases as kc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import DEVICE, DTYPES, few, ints, normal, pytestmark, torch  # noqa: F401

from kernels import transfer
from kernels.copies import copy_pieces, gather_pieces, scatter_pieces
from kernels.reference import copy_reference
from kernels.transfer import METHODS, choose_method, migrate, pinned_pool, runs, swap_in, swap_out

words = st.sampled_from((1, 3, 1024, 2048, 5000))
rows = st.lists(st.integers(0, 9), min_size=1, max_size=6, unique=True)


def pool(words: int, dtype: Any, seed: int) -> Any:
    """Ten rows of any bits, so that payloads of NaN and signs of zero count."""
    bits = torch.randint(-(2**31), 2**31, (10, words), generator=torch.Generator().manual_seed(seed))
    return bits.to(torch.int32).view(dtype).to(DEVICE)


def same(a: Any, b: Any) -> bool:
    return torch.equal(a.reshape(a.shape[0], -1).view(torch.int32), b.reshape(b.shape[0], -1).view(torch.int32))


@few
@given(words, kc.dtypes, rows, st.randoms(use_true_random=False), kc.seeds)
def test_gather_scatter_and_copy(words: int, dtype: Any, source: list[int], random: Any, seed: int) -> None:
    a, b = pool(words, dtype, seed), pool(words, dtype, seed + 1)
    target = random.sample(range(10), len(source))
    packed = gather_pieces(a, ints(source))
    assert same(packed, a[source])
    expected = copy_reference(a, source, b, target)
    scattered, copied = b.clone(), b.clone()
    scatter_pieces(packed, scattered, ints(target))
    copy_pieces(a, copied, ints(source), ints(target), programs=2)
    assert same(scattered, expected)
    assert same(copied, expected)


def test_without_rows_all_are_copied() -> None:
    a, b = pool(32, torch.float32, 0), pool(32, torch.float32, 1)
    copy_pieces(a, b)
    assert same(a, b)


def test_nothing_to_copy() -> None:
    a = pool(32, torch.float32, 0)
    before = a.clone()
    scatter_pieces(gather_pieces(a, ints([])), a, ints([]))
    assert same(a, before)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_swap_out_and_in(method: str, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round trip through host memory onto other pages, in parts of two pieces."""
    a, b = normal((12, 2, 16, 64), dtype, 1), normal((12, 2, 16, 64), dtype, 2)
    monkeypatch.setattr(transfer, "STAGING_BYTES", 2 * a[0].numel() * a.element_size())
    host = pinned_pool(9, a).zero_()
    pages, slots, back = [3, 4, 5, 11, 0, 7, 8], [0, 1, 2, 5, 6, 8, 7], [1, 0, 9, 10, 11, 2, 4]
    swap_out(a, pages, host, slots, method)
    swap_in(b, back, host, slots, method)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    assert same(host[slots], a[pages].cpu())
    assert bool((host[[3, 4]] == 0).all())
    assert same(b[back], a[pages])


@few
@given(st.lists(st.integers(0, 4), max_size=20), st.lists(st.integers(0, 4), min_size=20, max_size=20))
def test_runs_are_the_longest_stretches(first: list[int], second: list[int]) -> None:
    second = second[: len(first)]
    found = runs(torch.tensor(first), torch.tensor(second))
    assert [i for start, length in found for i in range(start, start + length)] == list(range(len(first)))
    for start, length in found:
        assert first[start : start + length] == list(range(first[start], first[start] + length))
        assert second[start : start + length] == list(range(second[start], second[start] + length))
        end = start + length
        if end < len(first):
            assert (first[end], second[end]) != (first[end - 1] + 1, second[end - 1] + 1)


def test_the_method_follows_the_runs() -> None:
    """Long runs on both sides: copy engine; on the host's side alone: staged; on neither: the kernel."""
    together, apart, piece = torch.arange(64), torch.arange(0, 128, 2), 2**17
    assert choose_method(together, together, piece) == "copy_engine"
    assert choose_method(apart, together, piece) == "staged"
    assert choose_method(together, apart, piece) == "kernel"
    assert choose_method(together[:1], together[:1], 8192) == "kernel"


def test_migration_within_one_gpu() -> None:
    a, b = normal((6, 1, 16, 64), torch.float16, 1), normal((6, 1, 16, 64), torch.float16, 2)
    expected = copy_reference(a, [5, 0], b, [2, 3])
    migrate(a, [5, 0], b, [2, 3])
    assert same(b, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_migration_between_gpus() -> None:
    a = normal((6, 1, 16, 64), torch.float16, 1)
    b = torch.zeros((6, 1, 16, 64), dtype=torch.float16, device="cuda:1")
    migrate(a, [5, 0, 1], b, [2, 3, 5])
    torch.cuda.synchronize("cuda:1")
    assert same(b[[2, 3, 5]].cpu(), a[[5, 0, 1]].cpu())


def test_mistakes_are_told() -> None:
    a, host = normal((4, 2, 16, 64), torch.float16, 1), pinned_pool(4, normal((4, 2, 16, 64), torch.float16, 2))
    for kind, message, call in (
        (ValueError, "expected contiguous rows", lambda: gather_pieces(a.transpose(1, 2), ints([0]))),
        (ValueError, "rows of 2 bytes", lambda: gather_pieces(a.view(-1, 1), ints([0]))),
        (TypeError, "source is torch.float16 and target torch.float32", lambda: copy_pieces(a, a.float())),
        (ValueError, "expected the same shape", lambda: copy_pieces(a, a[:, :1].contiguous())),
        (TypeError, "source_rows is torch.int64", lambda: gather_pieces(a, ints([0]).long())),
        (ValueError, "5 pieces for source of 4 rows", lambda: scatter_pieces(a, a.repeat(2, 1, 1, 1), ints([0] * 5))),
        (ValueError, "pages names row 4; expected 0 to 3", lambda: swap_out(a, [4], host, [0])),
        (ValueError, "2 pages and 1 slots", lambda: swap_out(a, [0, 1], host, [0])),
        (ValueError, "method is 'dma'; expected one of auto", lambda: swap_in(a, [0], host, [0], "dma")),
        (TypeError, "slots holds something other", lambda: swap_in(a, [0], host, [0.5])),  # type: ignore[list-item]
        (TypeError, "pages is a 1-dimensional torch.float32 tensor", lambda: swap_in(a, torch.zeros(1), host, [0])),
        (ValueError, "host has rows", lambda: swap_in(a, [0], host[:, :1], [0])),
        (ValueError, "expected as many", lambda: migrate(a, [0], a.clone(), [0, 1])),
        (TypeError, "pool is a list", lambda: gather_pieces([1], ints([0]))),
    ):  # fmt: skip
        with pytest.raises(kind, match=message):
            call()
