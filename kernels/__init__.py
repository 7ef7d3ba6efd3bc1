"""Triton kernels of LLM serving over a paged KV cache, PyTorch references, and what measures and replays with them.

decode.py, prefill.py    attention of one new token, and of chunks of new tokens, over paged keys and values
copies.py, transfer.py   gather, scatter and copy of pages on a GPU; to and from pinned host memory; between GPUs
layers.py                the small kernels between the matrix products of a Llama layer
reference.py             what each of them computes, in fp32 PyTorch
resources.py             registers, spills and instructions of every kernel, compiled without a GPU
measure.py, report.py    every kernel timed over a grid into a CSV file; the targets read from it
replay.py                a small real engine that replays a recorded trace

Tensors: a pool of pages is (pages, kv_heads, page, head_dim), contiguous; a block table is (sequences, most pages of a
sequence) int32, row i naming the pages of sequence i in order. Everything but measure and replay is importable without
a GPU: kernels then run in Triton's interpreter (device.py).
"""
