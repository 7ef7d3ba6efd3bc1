"""Tiny shapes for the tests of kernels: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="pip install 'sagasim[gpu]'")
import kernels.device  # noqa: E402, F401  # before triton: chooses its interpreter where there is no GPU

pytest.importorskip("triton", reason="pip install 'sagasim[gpu]'")

from hypothesis import HealthCheck, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

torch.set_num_threads(1)  # tiny tensors
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
# Of Triton 3.6 with NumPy 2, in the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")

few = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
dtypes = st.sampled_from(DTYPES)
head_dims = st.sampled_from((64, 128))
pages = st.sampled_from((16, 32, 64, 128))
groups = st.sampled_from(((1, 1), (4, 1), (6, 2), (8, 2), (16, 1)))  # heads, KV heads
seeds = st.integers(0, 2**31 - 1)


@dataclass(frozen=True)
class Paged:
    """Queries over a paged context. Tokens of the pools beyond a context are NaN, so that reading one shows."""

    q: Any
    k_pool: Any
    v_pool: Any
    block_table: Any
    context_lens: Any

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.q, self.k_pool, self.v_pool, self.block_table, self.context_lens


def ints(values: list[int]) -> Any:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def normal(shape: tuple[int, ...], dtype: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).to(DEVICE)


def paged(
    dtype: Any, head_dim: int, page: int, heads: int, kv_heads: int, contexts: list[int], rows: int, seed: int = 0
) -> Paged:
    """Contexts on shuffled pages of a pool that has some to spare; q has `rows` rows."""
    needed = [-(-length // page) for length in contexts]
    shape = (sum(needed) + 3, kv_heads, page, head_dim)
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(seed)).tolist()
    k_pool, v_pool = normal(shape, dtype, seed + 1), normal(shape, dtype, seed + 2)
    columns = max(1, *needed) + 1
    poison = order[-1]
    k_pool[poison], v_pool[poison] = float("nan"), float("nan")
    table = []
    for length, count in zip(contexts, needed, strict=True):
        mine, order = order[:count], order[count:]
        table.append(mine + [poison] * (columns - count))
        if length % page:
            k_pool[mine[-1], :, length % page :] = float("nan")
            v_pool[mine[-1], :, length % page :] = float("nan")
    block_table = torch.tensor(table, dtype=torch.int32, device=DEVICE)
    return Paged(normal((rows, heads, head_dim), dtype, seed + 3), k_pool, v_pool, block_table, ints(contexts))
