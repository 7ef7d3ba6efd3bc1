"""KV pages between a GPU's pool and pinned host memory (swap), and between the pools of two GPUs (migration).

Three ways over the link, told apart by `method`:

copy_engine  one asynchronous copy for each run of pieces that lie side by side on both ends. Issuing one from Python
             takes about 5 us (assumed), in which a link of 52 GB/s moves 260 KB, so runs must be megabytes.
staged       a kernel packs pieces into a buffer on the GPU (or unpacks them), and the copy engine moves the buffer, in
             parts, while the kernel works on the next one. Needs long runs on the host's side alone.
kernel       a kernel on a dozen SMs reads or writes host memory itself. Any layout, no buffer.
auto         the first of these whose runs are long enough.

All are asynchronous: on return the work is queued on the current stream, and the host memory must stay as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch

from kernels.checks import check_indices
from kernels.copies import copy_pieces, gather_pieces, piece_words, scatter_pieces

__all__ = ["METHODS", "choose_method", "migrate", "pinned_pool", "runs", "swap_in", "swap_out"]

METHODS = ("auto", "copy_engine", "staged", "kernel")
LONG_RUN_BYTES = 2 * 2**20  # 38 us of a 52 GB/s link for 5 us of issuing
STAGING_BYTES = 8 * 2**20  # of one part: 0.15 ms of the link; packing it takes some microseconds
BUFFERS = 3  # of staging: one filled, one moved, one on its way
HOST_PROGRAMS = 16  # 16 KiB in flight each: three times what 55 GB/s and 1.5 us need


def pinned_pool(rows: int, like: torch.Tensor) -> torch.Tensor:
    """Host memory for `rows` pieces of a pool, page-locked where there is a GPU."""
    return torch.empty((rows, *like.shape[1:]), dtype=like.dtype, pin_memory=torch.cuda.is_available())


def runs(*rows: torch.Tensor) -> list[tuple[int, int]]:
    """(start, length) of stretches of positions where the rows, in all of these lists, grow by one."""
    count = len(rows[0])
    if not count:
        return []
    broken = torch.zeros(count - 1, dtype=torch.bool)
    for numbers in rows:
        broken |= numbers.diff() != 1
    edges = [0, *(broken.nonzero().flatten() + 1).tolist(), count]
    return [(a, b - a) for a, b in pairwise(edges)]


def choose_method(pages: torch.Tensor, slots: torch.Tensor, piece_bytes: int) -> str:
    """The way that suits these rows: by the mean length of runs on both sides, then on the host's side."""
    total = len(pages) * piece_bytes
    if total >= LONG_RUN_BYTES * len(runs(pages, slots)):
        return "copy_engine"
    if total >= LONG_RUN_BYTES * len(runs(slots)):
        return "staged"
    return "kernel"


def _checked(
    pool: torch.Tensor,
    pages: Sequence[int] | torch.Tensor,
    host: torch.Tensor,
    slots: Sequence[int] | torch.Tensor,
    method: str,
) -> tuple[torch.Tensor, torch.Tensor, str]:
    piece_words(pool, "pool")
    piece_words(host, "host")
    if host.is_cuda or (pool.is_cuda and not host.is_pinned()):
        raise ValueError("host is not in pinned host memory; expected a tensor of pinned_pool")
    if host.dtype != pool.dtype or host.shape[1:] != pool.shape[1:]:
        raise ValueError(
            f"host has rows {tuple(host.shape[1:])} {host.dtype}; expected {tuple(pool.shape[1:])} {pool.dtype}"
        )
    page_rows, slot_rows = check_indices(pages, "pages", pool.shape[0]), check_indices(slots, "slots", host.shape[0])
    if len(page_rows) != len(slot_rows):
        raise ValueError(f"{len(page_rows)} pages and {len(slot_rows)} slots; expected as many")
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    if method == "auto":
        method = choose_method(page_rows, slot_rows, pool[0].numel() * pool.element_size())
    return page_rows, slot_rows, method


def _rows(rows: torch.Tensor, device: torch.device) -> torch.Tensor:
    held = rows.int()
    return held.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else held


def swap_out(
    pool: torch.Tensor,
    pages: Sequence[int] | torch.Tensor,
    host: torch.Tensor,
    slots: Sequence[int] | torch.Tensor,
    method: str = "auto",
) -> None:
    """host[slots[i]] = pool[pages[i]]. pool: (pages, ...) on the GPU; host: (slots, ...) of pinned_pool.

    pages and slots: whole numbers, as lists or (quicker where they are many) as tensors on the CPU.
    """
    _swap(pool, pages, host, slots, method, outward=True)


def swap_in(
    pool: torch.Tensor,
    pages: Sequence[int] | torch.Tensor,
    host: torch.Tensor,
    slots: Sequence[int] | torch.Tensor,
    method: str = "auto",
) -> None:
    """pool[pages[i]] = host[slots[i]]: the inverse of swap_out. Pages are distinct."""
    _swap(pool, pages, host, slots, method, outward=False)


def _swap(
    pool: torch.Tensor,
    pages: Sequence[int] | torch.Tensor,
    host: torch.Tensor,
    slots: Sequence[int] | torch.Tensor,
    method: str,
    outward: bool,
) -> None:
    page_rows, slot_rows, method = _checked(pool, pages, host, slots, method)
    if method == "kernel":
        here, there = _rows(page_rows, pool.device), _rows(slot_rows, pool.device)
        if outward:
            copy_pieces(pool, host, here, there, programs=HOST_PROGRAMS)
        else:
            copy_pieces(host, pool, there, here, programs=HOST_PROGRAMS)
    elif method == "copy_engine":
        _copy_runs(pool, page_rows, host, slot_rows, outward)
    else:
        index = _rows(page_rows, pool.device)
        lanes = _Lanes(pool, len(page_rows))
        for part, start, end, packed in lanes.buffers():
            packed_rows = torch.arange(end - start)
            if outward:
                gather_pieces(pool, index[start:end], out=packed)
                with lanes.beside(part):
                    _copy_runs(packed, packed_rows, host, slot_rows[start:end], outward)
            else:
                _copy_runs(packed, packed_rows, host, slot_rows[start:end], outward)
                with lanes.beside(part):
                    scatter_pieces(packed, pool, index[start:end])


def _copy_runs(
    pool: torch.Tensor, page_rows: torch.Tensor, host: torch.Tensor, slot_rows: torch.Tensor, outward: bool
) -> None:
    """One asynchronous copy for each run of rows that lie side by side in both."""
    pages, slots = page_rows.tolist(), slot_rows.tolist()
    for start, length in runs(page_rows, slot_rows):
        page, slot = pages[start], slots[start]
        here, there = pool[page : page + length], host[slot : slot + length]
        if outward:
            there.copy_(here, non_blocking=True)
        else:
            here.copy_(there, non_blocking=True)


class _Lanes:
    """Parts of about STAGING_BYTES through a few buffers: one half of a part on this stream, the other on a second one.

    Leaving it, this stream waits for the second, so that buffers may be used again by whatever follows on this one.
    """

    def __init__(self, pool: torch.Tensor, count: int) -> None:
        self.step = max(1, min(count, STAGING_BYTES // (pool[0].numel() * pool.element_size())))
        self.parts = [(start, min(start + self.step, count)) for start in range(0, count, self.step)]
        shape = (self.step, *pool.shape[1:])
        number = min(BUFFERS, len(self.parts))
        self._buffers = [torch.empty(shape, dtype=pool.dtype, device=pool.device) for _ in range(number)]
        self._free: list[torch.cuda.Event | None] = [None] * number
        self._streams: tuple[torch.cuda.Stream, torch.cuda.Stream] | None = None
        if pool.device.type == "cuda":
            self._streams = torch.cuda.current_stream(pool.device), _side_stream(pool.device)

    def buffers(self) -> Iterator[tuple[int, int, int, torch.Tensor]]:
        """(part, start, end, its buffer), once what used the buffer before has ended."""
        for part, (start, end) in enumerate(self.parts):
            place = part % len(self._buffers)
            free = self._free[place]
            if self._streams is not None and free is not None:
                self._streams[0].wait_event(free)
            yield part, start, end, self._buffers[place][: end - start]
        if self._streams is not None:
            self._streams[0].wait_stream(self._streams[1])

    @contextmanager
    def beside(self, part: int) -> Iterator[None]:
        """What is queued within runs on the second stream, after all that this one was given so far."""
        if self._streams is None:
            yield
            return
        main, side = self._streams
        side.wait_stream(main)
        with torch.cuda.stream(side):
            yield
        self._free[part % len(self._buffers)] = side.record_event()


_SIDE: dict[torch.device, torch.cuda.Stream] = {}


def _side_stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _SIDE:
        _SIDE[device] = torch.cuda.Stream(device)
    return _SIDE[device]


def migrate(
    source: torch.Tensor,
    source_pages: Sequence[int] | torch.Tensor,
    target: torch.Tensor,
    target_pages: Sequence[int] | torch.Tensor,
) -> None:
    """target[target_pages[i]] = source[source_pages[i]], pools of one or of two GPUs. Target pages are distinct.

    Between two GPUs pages are packed on the one, moved by the copy engine, and unpacked on the other, in parts.
    """
    piece_words(source, "source")
    piece_words(target, "target")
    if source.dtype != target.dtype or source.shape[1:] != target.shape[1:]:
        raise ValueError(
            f"source has rows {tuple(source.shape[1:])} {source.dtype} and target {tuple(target.shape[1:])} "
            f"{target.dtype}; expected the same"
        )
    from_pages = check_indices(source_pages, "source_pages", source.shape[0])
    to_pages = check_indices(target_pages, "target_pages", target.shape[0])
    if len(from_pages) != len(to_pages):
        raise ValueError(f"{len(from_pages)} source pages and {len(to_pages)} target pages; expected as many")
    if source.device == target.device:
        copy_pieces(source, target, _rows(from_pages, source.device), _rows(to_pages, target.device))
        return
    from_rows, to_rows = _rows(from_pages, source.device), _rows(to_pages, target.device)
    step = max(1, STAGING_BYTES // (source[0].numel() * source.element_size()))
    for start in range(0, len(from_pages), step):
        with torch.cuda.device(source.device):
            packed = gather_pieces(source, from_rows[start : start + step])
        moved = packed.to(target.device, non_blocking=True)
        with torch.cuda.device(target.device):
            scatter_pieces(moved, target, to_rows[start : start + step])
