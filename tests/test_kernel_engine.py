"""The small engine: what it generates is what the plain model generates, however requests share steps and blocks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import DEVICE, few, pytestmark, torch  # noqa: F401

from kernels.blocks import BLOCK_TOKENS, Blocks, chain
from kernels.engine import Engine, decode_sizes
from kernels.grid import Shape
from kernels.layers import rope_tables
from kernels.model import ROPE_THETA, StepShape
from kernels.reference import rms_norm_reference, rope_reference, silu_mul_reference
from kernels.scheduler import Request, Scheduler

SHAPE = Shape("test", 2, 64, 2, 1, 64, 64, 97)


def plain(model: Any, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens of the whole context computed anew for each, in fp32, without pages or kernels."""
    s, ones = model.shape, torch.ones(model.shape.hidden, device=DEVICE)
    cos, sin = rope_tables(500, s.head_dim, ROPE_THETA, DEVICE)
    tokens = list(prompt)
    for _ in range(count):
        positions = torch.arange(len(tokens), device=DEVICE)
        hidden = model.embedding[torch.tensor(tokens, device=DEVICE)]
        for qkv, o, gate_up, down in model.layers:
            heads = (rms_norm_reference(hidden, ones, None, 1e-5)[0] @ qkv.t()).view(len(tokens), -1, s.head_dim)
            q = rope_reference(heads[:, : s.heads], cos, sin, positions).transpose(0, 1)
            k = rope_reference(heads[:, s.heads : -s.kv_heads], cos, sin, positions).transpose(0, 1)
            v = heads[:, -s.kv_heads :].transpose(0, 1)
            k, v = (x.repeat_interleave(s.heads // s.kv_heads, 0) for x in (k, v))
            attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            hidden = hidden + attended.transpose(0, 1).flatten(1) @ o.t()
            hidden = (
                hidden + silu_mul_reference(rms_norm_reference(hidden, ones, None, 1e-5)[0] @ gate_up.t()) @ down.t()
            )
        last = rms_norm_reference(hidden[-1:], ones, None, 1e-5)[0]
        tokens.append(int((last @ model.lm_head.t()).argmax()))
    return tokens[len(prompt) :]


def engine(blocks: int, seqs: int = 4, budget: int = 40) -> Engine:
    made = Engine(
        SHAPE, DEVICE, dtype=torch.float32, blocks=blocks, max_num_seqs=seqs, max_num_batched_tokens=budget,
        max_model_len=160,
    )  # fmt: skip
    made.capture()
    return made


def numbers(seed: int, count: int) -> list[int]:
    return torch.randint(SHAPE.vocab, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def request(name: str, prompt: list[int], outputs: int) -> Request:
    return Request(name, list(prompt), len(prompt), outputs)


def run(made: Engine, requests: list[Request]) -> int:
    for item in requests:
        made.add(item)
    steps = 0
    while made.busy:
        made.step()
        steps += 1
    return steps


def test_shared_prefixes_chunks_and_mixed_steps() -> None:
    made = engine(blocks=30)
    base = numbers(1, 40)
    requests = [
        request("long", base + numbers(2, 3), 6),
        request("shares", base[:33] + numbers(3, 10), 4),
        request("alone", numbers(4, 17), 9),
        request("whole blocks again", base[:32], 3),
        request("one token", numbers(5, 1), 3),
        request("chunked", base[:35] + numbers(6, 60), 3),
    ]
    run(made, requests)
    for item in requests:
        assert item.tokens[item.prompt_tokens :] == plain(
            made.model, item.tokens[: item.prompt_tokens], item.output_tokens
        )
    assert [item.cached_tokens for item in requests] == [0, 32, 0, 16, 0, 32]
    assert made.scheduler.blocks.free == 30
    assert made.output_tokens == sum(item.output_tokens for item in requests)
    assert made.prompt_tokens == sum(item.prompt_tokens - item.cached_tokens for item in requests)


def test_outputs_are_found_as_a_later_prompt() -> None:
    made = engine(blocks=20)
    first = request("first", numbers(1, 20), 20)
    run(made, [first])
    second = request("second", first.tokens + numbers(2, 3), 2)
    run(made, [second])
    assert second.cached_tokens == 32  # 39 tokens were computed, the last output was not
    assert second.tokens[-2:] == plain(made.model, second.tokens[:-2], 2)


def test_a_preempted_request_generates_the_same() -> None:
    made = engine(blocks=5)
    requests = [request(str(i), numbers(i, 30), 5) for i in range(2)]
    run(made, requests)
    assert made.scheduler.preemptions > 0
    for item in requests:
        assert item.tokens[30:] == plain(made.model, item.tokens[:30], 5)
    assert made.scheduler.blocks.free == 5


def test_requests_that_can_never_run_are_refused() -> None:
    made = engine(blocks=7)
    for prompt, outputs in (([1] * 110, 3), ([], 3), ([1], 0)):
        with pytest.raises(ValueError, match="expected a prompt and an output, 112 at most"):
            made.add(request("bad", prompt, outputs))
    with pytest.raises(ValueError, match="expected at least max_num_seqs"):
        engine(blocks=7, seqs=50)


def test_graph_sizes_hold_every_batch() -> None:
    assert decode_sizes(5) == [1, 2, 4, 8]
    assert decode_sizes(128)[-1] == 128
    assert decode_sizes(500)[-1] == 512


def test_a_buffer_is_its_fields() -> None:
    step = StepShape(4, 2, 2)
    flat = step.filled({"tokens": [5, 6, 7], "chunk_starts": [1, 3], "outputs": [0, 2]})
    views = step.views(torch.tensor(flat))
    assert len(flat) == step.size
    assert views["tokens"].tolist() == [5, 6, 7, 0]
    assert views["slots"].tolist() == [-1] * 4
    assert views["chunk_starts"].tolist() == [1, 3, 3]  # chunks that are not there are empty
    assert views["outputs"].tolist() == [0, 2, 0, 0]


@few
@given(st.data())
def test_blocks_are_kept_as_long_as_possible(data: st.DataObject) -> None:
    """Against a plain list: hold, take, release and register in random order."""
    blocks, queue, holders = Blocks(6), list(range(6)), [0] * 6
    held: list[list[int]] = []
    known: dict[bytes, int] = {}
    forgotten: set[bytes] = set()
    for turn in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(("take", "release", "hold")))
        if action == "take" and queue:
            count = data.draw(st.integers(1, len(queue)))
            expected, queue = queue[:count], queue[count:]
            assert blocks.take(count) == expected
            for block in expected:
                forgotten |= {digest for digest, other in known.items() if other == block}
                known = {digest: other for digest, other in known.items() if other != block}
                holders[block] = 1
                digest = f"{turn}/{block}".encode()
                blocks.register(block, digest)
                known[digest] = block
            held.append(expected)
        elif action == "release" and held:
            gone = held.pop(data.draw(st.integers(0, len(held) - 1)))
            blocks.release(gone)
            for block in reversed(gone):
                holders[block] -= 1
                if not holders[block]:
                    queue.append(block)
        elif action == "hold" and known:
            digests = data.draw(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=3, unique=True))
            found = blocks.match(digests)
            assert found == [known[digest] for digest in digests]
            assert blocks.idle(found) == sum(holders[block] == 0 for block in found)
            blocks.hold(found)
            for block in found:
                holders[block] += 1
                queue = [other for other in queue if other != block]
            held.append(found)
        assert blocks.free == len(queue)
        assert all(blocks.match([digest]) == [] for digest in forgotten)


@few
@given(st.lists(st.integers(0, 1), min_size=0, max_size=60), st.lists(st.integers(0, 1), min_size=0, max_size=60))
def test_chains_agree_as_far_as_whole_blocks_do(a: list[int], b: list[int]) -> None:
    first = chain(a, [], len(a) // BLOCK_TOKENS)
    second = chain(b, [], len(b) // BLOCK_TOKENS)
    shared = 0
    while shared < min(len(first), len(second)) and a[: (shared + 1) * 16] == b[: (shared + 1) * 16]:
        shared += 1
    assert first[:shared] == second[:shared]
    assert not set(first[shared:]) & set(second[shared:])
    assert chain(a, first[:1], len(a) // BLOCK_TOKENS) == first


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20)), min_size=1, max_size=8),
    st.integers(5, 12), st.integers(1, 4), st.integers(4, 50),
)  # fmt: skip
def test_a_scheduler_keeps_its_limits(sizes: list[tuple[int, int]], count: int, seqs: int, budget: int) -> None:
    """Budget, batch and blocks are never exceeded, each position is computed by somebody, and all requests end."""
    blocks = Blocks(count)
    scheduler = Scheduler(blocks, seqs, budget)
    waiting = [
        request(str(i), [i] * prompt, outputs)
        for i, (prompt, outputs) in enumerate(sizes)
        if prompt + outputs <= count * BLOCK_TOKENS
    ]
    for item in waiting:
        scheduler.add(item)
    ended: list[Request] = []
    for step in range(5000):
        work = scheduler.plan(float(step + 1))
        if not work:
            break
        assert sum(item.new for item in work) <= budget
        assert len(scheduler.running) <= seqs
        rows = [item.row for item in scheduler.running]
        assert len(set(rows)) == len(rows)
        for item in work:
            assert item.new >= 1
            assert len(item.request.blocks) * BLOCK_TOKENS >= item.request.computed + item.new
        ended += scheduler.done(work, [0] * len(work), float(step + 1))
        assert blocks.free == count - len({b for item in scheduler.running for b in item.blocks})
    assert {item.name for item in ended} == {item.name for item in waiting}
    for item in ended:
        assert item.produced == item.output_tokens
        assert 0 < item.scheduled_s <= item.first_token_s <= item.last_token_s
    assert blocks.free == count
